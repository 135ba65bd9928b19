//! A pooler between tbd and PostgreSQL: PgBouncer from Debian.

use crate::support::http::get;
use crate::support::program::{READY, Stack};
use crate::support::{OwnServer, eventually, unique};

/// In every configuration of PgBouncer, each transaction may get another session, and with it another
/// program's statements.
#[test]
fn behind_a_pooler_no_statement_is_run_and_readiness_says_why() {
    let mut stack = Stack::new();
    drop(stack.api());
    let direct = stack.database.port;
    for (pool_mode, ignored) in [
        ("transaction", "extra_float_digits"),
        ("transaction", "extra_float_digits,options"),
        ("session", "extra_float_digits,options"),
    ] {
        let settings = [
            &*format!("pool_mode={pool_mode}"),
            &*format!("ignore_startup_parameters={ignored}"),
        ];
        let pooler = OwnServer::pgbouncer(direct, &settings);
        stack = stack
            .set("DB_PORT", &pooler.port().to_string())
            .set("DB_COALESCE", "off");
        for program in [stack.start_api(), stack.start_worker()] {
            let reason = eventually(READY, "the reason", || {
                let ready = get("/readyz").try_send(&program.address()).ok()?;
                assert_eq!(ready.status, 503);
                let reason = ready.json()["checks"]["database"].to_string();
                (!reason.contains("not asked yet")).then_some(reason)
            });
            assert!(
                reason.contains("PgBouncer") && reason.contains("DB_HOST"),
                "{pool_mode}, {ignored}: {reason}"
            );
        }
        let api = stack.start_api();
        eventually(READY, "an answer", || {
            get("/healthz").try_send(&api.address()).ok()
        });
        api.order(&unique("key"), 1299)
            .problem(503, "dependency-unavailable");
    }
    assert_eq!(stack.count("orders"), 0);
}
