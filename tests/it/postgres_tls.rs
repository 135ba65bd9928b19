//! Encrypted sessions with a real PostgreSQL that requires certificates, and what happens when one
//! of them is wrong, expires or is replaced.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tbd_deadline::Deadline;
use tbd_postgres::{DatabaseConfig, DatabaseError, Identity, Pool, Roots, SslMode, Tls};

use crate::support::certificates::{Authority, Files, Validity};
use crate::support::http::get;
use crate::support::program::{Program, Stack};
use crate::support::{
    Database, OwnServer, PASSWORD, SetOnDrop, USER, eventually, kafka, postgres, unique,
};

/// The role that needs a certificate.
const SERVICE: &str = "service";

const SOON: Duration = Duration::from_secs(30);

/// A PostgreSQL at 127.0.0.1 whose certificate is for `localhost`.
struct Site {
    authority: Authority,
    server: OwnServer,
}

impl Site {
    fn new() -> Site {
        let authority = Authority::new("tests");
        let certificate = authority.issue("localhost", Validity::Now);
        let server = OwnServer::postgres_with_tls(&certificate, &authority.ca_file());
        let site = Site { authority, server };
        let create = format!("CREATE ROLE {SERVICE} SUPERUSER LOGIN PASSWORD '{PASSWORD}'");
        site.execute(&create);
        site
    }

    fn execute(&self, statement: &str) {
        let database = Database::on(&self.server.address());
        database
            .connect()
            .batch_execute(statement)
            .expect(statement);
    }

    /// Serves new sessions with a certificate of this validity.
    fn renew(&self, validity: Validity) {
        let certificate = self.authority.issue("localhost", validity);
        self.server.secure(&certificate, &self.authority.ca_file());
        self.execute("SELECT pg_reload_conf()");
    }
}

fn identity(files: &Files) -> Option<Identity> {
    Some(Identity::new(&files.certificate, &files.key))
}

/// Whether a session is encrypted, or why there is none.
fn open(address: (&str, u16), user: &str, tls: Tls) -> Result<bool, DatabaseError> {
    let pool = Pool::new(DatabaseConfig {
        max_conns: 1,
        tls,
        ..DatabaseConfig::new(address.0, address.1, user, PASSWORD, "tbd")
    })?;
    let question = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let row = pool
        .get(Deadline::after(SOON))?
        .query_opt(question, &[])?
        .expect("a row");
    Ok(row.get(0))
}

#[test]
fn each_mode_encrypts_and_checks_as_libpq_does() {
    let site = Site::new();
    let port = site.server.port();
    let (plain, strangers) = (postgres(), Authority::new("strangers"));
    let ours = || Some(Roots::File(site.authority.ca_file()));
    let others = || Some(Roots::File(strangers.ca_file()));
    use SslMode::{Disable, Prefer, Require, VerifyCa, VerifyFull};
    let (by_name, by_address) = (("localhost", port), ("127.0.0.1", port));
    let without = (&*plain.host, plain.port);
    let misnamed = "its certificate is for DnsName(\"localhost\"), not for 127.0.0.1";
    for (number, (address, mode, roots, expected)) in [
        (without, Prefer, None, Ok(false)),
        (without, Require, None, Err("it has no TLS")),
        (by_name, Disable, None, Ok(false)),
        (by_address, Prefer, None, Ok(true)),
        (by_address, Require, None, Ok(true)),
        (by_address, VerifyCa, ours(), Ok(true)),
        (by_address, VerifyFull, ours(), Err(misnamed)),
        (by_name, VerifyFull, ours(), Ok(true)),
        (
            by_name,
            VerifyFull,
            others(),
            Err("no trusted CA has signed its certificate"),
        ),
        (
            by_name,
            Require,
            others(),
            Err("no trusted CA has signed its certificate"),
        ),
        (by_name, Prefer, others(), Ok(false)),
    ]
    .into_iter()
    .enumerate()
    {
        let tls = Tls::new(mode, roots, None).unwrap();
        match (open(address, USER, tls), expected) {
            (Ok(is_encrypted), Ok(wanted)) => assert_eq!(is_encrypted, wanted, "{number}"),
            (Err(error), Err(hint)) => assert!(error.to_string().contains(hint), "{error}"),
            (found, _) => panic!("case {number}: {found:?}"),
        }
    }
}

#[test]
fn a_role_that_needs_a_certificate_is_admitted_with_its_own_only() {
    let site = Site::new();
    let strangers = Authority::new("strangers");
    let roots = || Some(Roots::File(site.authority.ca_file()));
    let issue = |name, validity| site.authority.issue(name, validity);
    for (mode, files, hint) in [
        (
            SslMode::VerifyFull,
            Some(issue(SERVICE, Validity::Now)),
            None,
        ),
        (
            SslMode::Require,
            None,
            Some("requires a valid client certificate"),
        ),
        (SslMode::Disable, None, Some("no encryption")),
        (
            SslMode::Prefer,
            Some(issue("another", Validity::Now)),
            Some("wrong password or certificate"),
        ),
        (
            SslMode::Require,
            Some(issue(SERVICE, Validity::Past)),
            Some("it refuses our certificate, which has expired"),
        ),
        (
            SslMode::Require,
            Some(issue(SERVICE, Validity::Future)),
            Some("it refuses our certificate"),
        ),
        (
            SslMode::Require,
            Some(strangers.issue(SERVICE, Validity::Now)),
            Some("it refuses our certificate: it does not trust its CA"),
        ),
    ] {
        let tls = Tls::new(mode, roots(), files.as_ref().and_then(identity)).unwrap();
        let outcome = open(("localhost", site.server.port()), SERVICE, tls);
        match (outcome, hint) {
            (Ok(is_encrypted), None) => assert!(is_encrypted),
            (Err(error), Some(hint)) => assert!(error.to_string().contains(hint), "{error}"),
            (outcome, _) => panic!("{outcome:?}, not {hint:?}"),
        }
    }
}

/// Posts orders one after another until it is stopped; the number of accepted ones.
fn customers(api: &Program, stop: &AtomicBool) -> i64 {
    let mut accepted = 0;
    while !stop.load(Ordering::Relaxed) {
        let key = unique("key");
        // A refused order is repeated under its key, as clients do.
        eventually(SOON, "an order to be accepted", || {
            (api.order(&key, 500).status == 202).then_some(())
        });
        accepted += 1;
    }
    accepted
}

#[test]
fn certificates_are_replaced_under_load_and_a_bad_one_is_named_until_it_is_gone() {
    let site = Site::new();
    let files = site.authority.issue(SERVICE, Validity::Now);
    let path = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let stack = Stack::on(Database::on(&site.server.address()), kafka())
        .set("DB_HOST", "localhost")
        .set("DB_USER", SERVICE)
        .set("DB_SSLMODE", "verify-full")
        .set("DB_SSLROOTCERT", &path(&site.authority.ca_file()))
        .set("DB_SSLCERT", &path(&files.certificate))
        .set("DB_SSLKEY", &path(&files.key))
        // New sessions all the time, and with them new certificates.
        .set("DB_CONN_MAX_LIFETIME", "1s");
    let (mut api, worker) = (stack.api(), stack.worker());
    let encrypted = format!(
        "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                             WHERE ssl AND client_dn = '/CN={SERVICE}' AND datname = current_database()"
    );
    assert!(stack.number(&encrypted) > 0);

    let stop = AtomicBool::new(false);
    let expected = thread::scope(|scope| {
        let _stopped = SetOnDrop(&stop);
        let customers = scope.spawn(|| customers(&api, &stop));
        let checks = || {
            let answer = get("/readyz").try_send(&api.address()).ok()?;
            Some((answer.status, answer.text()))
        };
        let becomes = |hint: &str| {
            eventually(SOON, hint, || {
                checks().filter(|(status, text)| *status == 503 && text.contains(hint))
            })
        };
        let recovers = || {
            eventually(SOON, "readiness", || {
                checks().filter(|(status, _)| *status == 200)
            })
        };
        for validity in [Validity::Now, Validity::Past, Validity::Now] {
            files.become_those_of(&site.authority.issue(SERVICE, validity));
            match validity {
                Validity::Now => recovers(),
                _ => becomes("it refuses our certificate, which has expired"),
            };
        }
        for (validity, hint) in [
            (Validity::Past, "its certificate has expired"),
            (Validity::Future, "its certificate is not valid yet"),
        ] {
            site.renew(validity);
            becomes(hint);
        }
        site.renew(Validity::Now);
        recovers();
        stop.store(true, Ordering::Relaxed);
        customers.join().expect("the customers")
    });
    stack.all_become("completed", expected, SOON);
    api.become_ready(SOON);
    let logs = [api, worker].map(|program| program.log().join("\n"));
    assert!(logs[0].contains("its certificate has expired"));
    for log in logs {
        assert!(
            !log.contains(PASSWORD) && !log.contains("PRIVATE KEY"),
            "{log}"
        );
    }
}
