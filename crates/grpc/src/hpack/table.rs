//! The tables that HPACK's indices name (RFC 7541, section 2.3 and appendix A).

use std::collections::VecDeque;

use super::Header;

/// The static table. Index 1 is its first entry.
#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// The index of the first entry of the dynamic table.
const FIRST_DYNAMIC: usize = STATIC.len() + 1;

/// The static table, and a dynamic one that never takes more octets than its size.
#[derive(Debug)]
pub(super) struct Table {
    /// The newest entry first.
    entries: VecDeque<Header>,
    bytes: usize,
    bytes_max: usize,
}

impl Table {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            bytes_max,
        }
    }

    pub(super) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// The entry that `index` names, in either table.
    pub(super) fn get(&self, index: usize) -> Option<Header> {
        if index >= FIRST_DYNAMIC {
            return self.entries.get(index - FIRST_DYNAMIC).cloned();
        }
        let (name, value) = STATIC.get(index.checked_sub(1)?)?;
        Some(Header::new(*name, *value))
    }

    /// Inserts an entry. The oldest ones make room; one that is larger than the table empties it (section 4.4).
    pub(super) fn insert(&mut self, header: Header) {
        let size = header.size();
        self.evict_until(self.bytes_max.saturating_sub(size));
        if size <= self.bytes_max {
            self.bytes += size;
            self.entries.push_front(header);
        }
    }

    /// Changes the size of the dynamic table, and evicts what no longer fits (section 4.3).
    pub(super) fn resize(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
        self.evict_until(bytes_max);
    }

    fn evict_until(&mut self, bytes: usize) {
        while self.bytes > bytes {
            let Some(evicted) = self.entries.pop_back() else {
                return;
            };
            self.bytes -= evicted.size();
        }
    }

    /// The index that names both name and value, or else one that names the name.
    pub(super) fn find(&self, header: &Header) -> Found {
        let mut found = Found::Nothing;
        let fixed = STATIC
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let dynamic = self
            .entries
            .iter()
            .map(|entry| (&entry.name[..], &entry.value[..]));
        for (position, (name, value)) in fixed.chain(dynamic).enumerate() {
            if name != header.name {
                continue;
            }
            if value == header.value {
                return Found::Both(position + 1);
            }
            if matches!(found, Found::Nothing) {
                found = Found::Name(position + 1);
            }
        }
        found
    }

    #[cfg(test)]
    pub(super) fn dynamic_entries(&self) -> (Vec<(String, String)>, usize) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let entries = self
            .entries
            .iter()
            .map(|entry| (text(&entry.name), text(&entry.value)));
        (entries.collect(), self.bytes)
    }
}

/// What a search in the tables finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Both(usize),
    Name(usize),
    Nothing,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_entries_make_room() {
        let mut table = Table::new(100);
        for name in ["a", "b", "c"] {
            table.insert(Header::new(name, "0123456789"));
        }
        let (entries, bytes) = table.dynamic_entries();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].0, "c");
        assert_eq!(bytes, 86);
    }

    #[test]
    fn an_entry_larger_than_the_table_empties_it() {
        let mut table = Table::new(100);
        table.insert(Header::new("a", "b"));
        table.insert(Header::new("a", "x".repeat(100)));
        assert_eq!(table.dynamic_entries(), (Vec::new(), 0));
    }

    #[test]
    fn indices_outside_both_tables_name_nothing() {
        let mut table = Table::new(100);
        assert_eq!(table.get(0), None);
        assert_eq!(table.get(62), None);
        assert_eq!(table.get(usize::MAX), None);
        table.insert(Header::new("a", "b"));
        assert_eq!(table.get(62), Some(Header::new("a", "b")));
        assert_eq!(table.get(2), Some(Header::new(":method", "GET")));
    }
}
