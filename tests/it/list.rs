//! `GET /v1/orders`: newest first, by page or by cursor.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::support::http::get;
use crate::support::program::{Program, Stack, id};

/// 250 orders, in creation order: every fifth canceled, the others pending.
fn seed(stack: &Stack) -> Vec<String> {
    let mut ids: Vec<String> = (0..250).map(|_| uuid::Uuid::now_v7().to_string()).collect();
    ids.sort();
    let rows: Vec<String> = ids
        .iter()
        .enumerate()
        .map(|(n, id)| {
            let status = if n % 5 == 0 { "canceled" } else { "pending" };
            let time = format!("timestamptz '2025-01-01 00:00:00Z' + interval '{n} seconds'");
            format!("('{id}', 'a@b.co', {}, '{status}', {time}, {time})", n + 1)
        })
        .collect();
    stack.execute(&format!(
        "INSERT INTO orders (id, customer_email, amount_cents, status, created_at, updated_at) VALUES {}",
        rows.join(",")
    ));
    ids
}

fn list(api: &Program, query: &str) -> Value {
    let response = get(format!("/v1/orders{query}")).send(&api.address());
    assert_eq!(response.status, 200, "{query}: {}", response.text());
    assert_eq!(response.header("Content-Type"), Some("application/json"));
    response.json()
}

fn ids(list: &Value) -> Vec<&str> {
    list["orders"]
        .as_array()
        .expect("orders")
        .iter()
        .map(id)
        .collect()
}

/// Follows next_cursor to the end.
fn walk(api: &Program, first: &str) -> Vec<String> {
    let mut seen = Vec::new();
    let mut query = format!("?{first}");
    loop {
        let page = list(api, &query);
        seen.extend(ids(&page).into_iter().map(str::to_owned));
        let Some(cursor) = page["next_cursor"].as_str() else {
            assert_eq!(page["has_more"], false);
            return seen;
        };
        assert_eq!(page["has_more"], true);
        query = format!("?{first}&cursor={cursor}");
    }
}

#[test]
fn without_orders_the_list_is_empty() {
    let stack = Stack::new();
    let api = stack.api();
    let expected =
        json!({ "orders": [], "page": 1, "page_size": 20, "has_more": false, "next_cursor": null });
    assert_eq!(list(&api, ""), expected);
}

#[test]
fn the_newest_come_first_page_by_page() {
    let stack = Stack::new();
    let api = stack.api();
    let mut newest_first = seed(&stack);
    newest_first.reverse();

    let first = list(&api, "");
    assert_eq!(ids(&first), newest_first[..20]);
    assert_eq!(
        first["orders"][0],
        get(format!("/v1/orders/{}", newest_first[0]))
            .send(&api.address())
            .json()
    );
    assert_eq!(
        (&first["page"], &first["page_size"], &first["has_more"]),
        (&json!(1), &json!(20), &json!(true))
    );

    let third = list(&api, "?page=3&page_size=100");
    assert_eq!(ids(&third), newest_first[200..]);
    assert_eq!(
        (&third["page"], &third["page_size"], &third["has_more"]),
        (&json!(3), &json!(100), &json!(false))
    );
    assert_eq!(third["next_cursor"], Value::Null);

    let beyond = list(&api, "?page=2147483647&page_size=100");
    assert_eq!(
        (ids(&beyond).len(), &beyond["has_more"]),
        (0, &json!(false))
    );
    // Exactly the last page: nothing follows.
    assert_eq!(list(&api, "?page=250&page_size=1")["has_more"], false);
}

#[test]
fn the_cursor_meets_every_order_once_while_new_ones_arrive() {
    let stack = Stack::new();
    let api = stack.api();
    let mut newest_first = seed(&stack);
    newest_first.reverse();
    let first = list(&api, "?page_size=7");
    let cursor = first["next_cursor"].as_str().expect("a cursor");
    api.accepted_order();
    let rest = walk(&api, "page_size=7");
    assert_eq!(rest.len(), 251);
    assert_eq!(rest[1..], newest_first);

    let mut continued = format!("?page_size=100&cursor={cursor}");
    let mut seen: Vec<String> = ids(&first).into_iter().map(str::to_owned).collect();
    loop {
        let page = list(&api, &continued);
        assert_eq!(page["page"], Value::Null);
        seen.extend(ids(&page).into_iter().map(str::to_owned));
        match page["next_cursor"].as_str() {
            Some(cursor) => continued = format!("?page_size=100&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(seen, newest_first);
}

#[test]
fn a_status_filters_pages_and_cursors_alike() {
    let stack = Stack::new();
    let api = stack.api();
    seed(&stack);
    let page = list(&api, "?status=canceled&page_size=50");
    assert_eq!((ids(&page).len(), &page["has_more"]), (50, &json!(false)));
    let statuses: HashSet<_> = page["orders"]
        .as_array()
        .expect("orders")
        .iter()
        .map(|o| &o["status"])
        .collect();
    assert_eq!(statuses, HashSet::from([&json!("canceled")]));
    assert_eq!(walk(&api, "status=canceled&page_size=7"), ids(&page));
    assert_eq!(walk(&api, "status=pending&page_size=100").len(), 200);
    assert_eq!(ids(&list(&api, "?status=failed")).len(), 0);
}

#[test]
fn a_bad_query_names_every_faulty_parameter() {
    let stack = Stack::new();
    let api = stack.api();
    for (query, fields) in [
        ("status=done", vec!["status"]),
        ("status=", vec!["status"]),
        ("status=Pending", vec!["status"]),
        ("page=0", vec!["page"]),
        ("page=-1", vec!["page"]),
        ("page=1.5", vec!["page"]),
        ("page=x", vec!["page"]),
        ("page=", vec!["page"]),
        ("page=2147483648", vec!["page"]),
        ("page_size=0", vec!["page_size"]),
        ("page_size=101", vec!["page_size"]),
        ("cursor=x", vec!["cursor"]),
        ("cursor=", vec!["cursor"]),
        ("cursor=00000000000000000000000000000000", vec!["cursor"]),
        ("page=1&page=1", vec!["page"]),
        ("status=pending&status=failed", vec!["status"]),
        (
            "status=done&page=0&page_size=101",
            vec!["status", "page", "page_size"],
        ),
    ] {
        let response = get(format!("/v1/orders?{query}")).send(&api.address());
        assert_eq!(response.faulty_fields(), fields, "{query}");
    }
}

#[test]
fn a_page_and_a_cursor_exclude_each_other() {
    let stack = Stack::new();
    let api = stack.api();
    seed(&stack);
    let first = list(&api, "");
    let cursor = first["next_cursor"].as_str().expect("a cursor");
    let response = get(format!("/v1/orders?page=1&cursor={cursor}")).send(&api.address());
    assert_eq!(response.faulty_fields(), ["cursor"]);
}

#[test]
fn parameters_that_nobody_knows_are_ignored() {
    let stack = Stack::new();
    let api = stack.api();
    assert_eq!(list(&api, "?x=1&x=2&&=&page=1")["page"], 1);
}
