#!/bin/sh
# Lets standbys on the container network, or those in REPLICATION_FROM, log in for replication. The image runs this once, on
# an empty volume.
echo "host replication all ${REPLICATION_FROM:-samenet} scram-sha-256" >>"$PGDATA/pg_hba.conf"
