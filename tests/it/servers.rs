//! The servers of `scripts/with-servers` and `crates/testkit`, on which the other tests depend.

use std::net::TcpStream;

use crate::support::{self, Database, OwnServer};

#[test]
fn every_test_gets_an_empty_database_of_its_own() {
    let (one, other) = (support::postgres(), support::postgres());
    one.connect()
        .batch_execute("CREATE TABLE orders ()")
        .expect("create a table");
    let tables: i64 = other
        .connect()
        .query_one(
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'",
            &[],
        )
        .expect("count tables")
        .get(0);
    assert_eq!(tables, 0);
}

#[test]
fn a_database_is_gone_with_its_value_even_while_it_is_in_use() {
    let database = support::postgres();
    let name = database.name.clone();
    let _left_open = database.connect();
    drop(database);
    let found = support::postgres()
        .connect()
        .query("SELECT 1 FROM pg_database WHERE datname = $1", &[&name])
        .expect("look for the database");
    assert!(found.is_empty());
}

#[test]
fn the_shared_kafka_accepts_connections() {
    TcpStream::connect(support::kafka()).expect("connect to Kafka");
}

#[test]
fn a_postgres_of_ones_own_keeps_its_data_over_a_stop_and_a_crash() {
    let server = OwnServer::postgres();
    let database = Database::on(&server.address());
    database
        .connect()
        .batch_execute("CREATE TABLE kept AS SELECT 1 AS one")
        .expect("create a table");
    server.stop();
    assert!(TcpStream::connect(server.address()).is_err());
    server.start();
    server.kill();
    assert!(TcpStream::connect(server.address()).is_err());
    server.start();
    let rows = database.connect().query("SELECT one FROM kept", &[]);
    assert_eq!(rows.expect("read the table").len(), 1);
}

#[test]
fn a_kafka_of_ones_own_can_be_killed_and_started_again() {
    let server = OwnServer::kafka();
    server.kill();
    assert!(TcpStream::connect(server.address()).is_err());
    server.start();
    TcpStream::connect(server.address()).expect("connect to Kafka");
}
