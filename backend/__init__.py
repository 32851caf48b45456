"""Everything of Tandem that talks to the world: Label Studio, browsers, the database, the disk."""
