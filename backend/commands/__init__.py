"""What the command ``tandem`` does, a module per group of commands."""
