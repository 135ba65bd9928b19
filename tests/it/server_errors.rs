//! Errors of a PostgreSQL that answers but cannot work: out of disk, memory or connections; read-only.

use crate::support::program::{Program, Stack};
use crate::support::unique;

/// Class 53 (insufficient resources) and class 58 (system error). The server itself raises each of them here.
const OUT_OF_RESOURCES: [&str; 7] = [
    "53000", "53100", "53200", "53300", "53400", "58000", "58030",
];

/// Makes an order of `n` cents, n from 1, fail with the `n`th code from now on.
fn raise_by_amount(stack: &Stack) {
    let codes = OUT_OF_RESOURCES.map(|code| format!("'{code}'")).join(", ");
    stack.execute(&format!(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             RAISE EXCEPTION 'the server has trouble'
                   USING ERRCODE = (ARRAY[{codes}])[NEW.amount_cents];
         END $$;
         CREATE TRIGGER fail BEFORE INSERT ON orders FOR EACH ROW
             WHEN (NEW.amount_cents <= {}) EXECUTE FUNCTION fail()",
        OUT_OF_RESOURCES.len()
    ));
}

fn assert_refused_and_repeatable(api: &Program, key: &str, amount_cents: u64) {
    let refused = api.order(key, amount_cents);
    refused.problem(503, "dependency-unavailable");
    assert!(refused.header("Retry-After").is_some());
}

#[test]
fn a_server_out_of_resources_is_unavailable_and_the_order_may_be_repeated() {
    for coalesce in ["on", "off"] {
        let stack = Stack::new().set("DB_COALESCE", coalesce);
        let api = stack.api();
        raise_by_amount(&stack);
        let keys = OUT_OF_RESOURCES.map(unique);
        for (amount, key) in (1..).zip(&keys) {
            assert_refused_and_repeatable(&api, key, amount);
        }
        assert_eq!(stack.count("orders"), 0);
        stack.execute("DROP TRIGGER fail ON orders");
        for (amount, key) in (1..).zip(&keys) {
            assert_eq!(api.order(key, amount).status, 202);
        }
        assert_eq!(stack.count("orders"), OUT_OF_RESOURCES.len() as i64);
    }
}
