#!/bin/sh
# Makes a database and its owner for Label Studio and for Tandem; PostgreSQL's image runs it at the first start.
set -eu
for name in label_studio tandem; do
    psql --quiet --set ON_ERROR_STOP=1 --username postgres --dbname postgres \
        --set name="$name" --set password="$(cat "/run/secrets/${name}_database_password")" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
done
