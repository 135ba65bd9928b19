//! The tables of error codes in `DESIGN.md`, for the tests that compare them with the client.
//!
//! Independent of the client's types, because the repository's tests include this file, too.

/// For each request and error code, the reaction.
pub struct ErrorTable {
    requests: Vec<String>,
    /// Codes and, for each request, a reaction.
    rows: Vec<(Vec<String>, Vec<String>)>,
}

const DESIGN: &str = include_str!("../DESIGN.md");
const RETRIABLE: &str = "other retriable codes";
const OTHER: &str = "any other";

impl ErrorTable {
    /// The first table of codes after the line `heading`.
    pub fn under(heading: &str) -> Self {
        let lines = DESIGN.lines().skip_while(|line| *line != heading);
        let mut lines = lines.skip_while(|line| !line.starts_with("| Code |"));
        let head = lines.next().expect("a table of codes under the heading");
        let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
        Self {
            requests: cells(head).skip(1).collect(),
            rows: rows
                .map(|row| {
                    let codes = cells(row).next().expect("a first cell");
                    let codes = codes.split(", ").map(str::to_owned).collect();
                    (codes, cells(row).skip(1).collect())
                })
                .collect(),
        }
    }

    /// The reaction to a code, by its name in the protocol's guide without underscores.
    pub fn reaction(&self, request: &str, code: &str, is_retriable: bool) -> &str {
        let mut requests = self.requests.iter();
        let column = requests.position(|names| names.split(", ").any(|name| name == request));
        let column = column.unwrap_or_else(|| panic!("no column {request}"));
        let is_it = |name: &String| name.replace('_', "").eq_ignore_ascii_case(code);
        let find = |wanted: &dyn Fn(&String) -> bool| {
            let mut rows = self.rows.iter();
            rows.find(|(codes, _)| codes.iter().any(wanted))
        };
        let row = find(&is_it)
            .or_else(|| find(&|name| is_retriable && name == RETRIABLE))
            .or_else(|| find(&|name| name == OTHER));
        &row.expect("a row for any other code").1[column]
    }

    /// The codes that have a row of their own.
    #[allow(dead_code, reason = "only one of the two users calls it")]
    pub fn codes(&self) -> impl Iterator<Item = String> {
        let codes = self.rows.iter().flat_map(|(codes, _)| codes);
        let named = codes.filter(|name| *name != RETRIABLE && *name != OTHER);
        named.map(|name| name.replace('_', "").to_lowercase())
    }
}

fn cells(line: &str) -> impl Iterator<Item = String> {
    let line = line.trim_matches('|');
    line.split('|').map(|cell| cell.trim().to_owned())
}
