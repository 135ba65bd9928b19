//! Migrations embedded in the programs.

use tbd_postgres::embedded_migrations;
use tbd_postgres::migrations::Source;

/// The files of `migrations/`; a test compares this list with the folder.
pub const EMBEDDED: Source = embedded_migrations!(
    "migrations",
    [
        "000001_create_orders",
        "000002_create_idempotency_keys",
        "000003_create_outbox",
        "000004_create_sagas",
    ]
);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::fs;

    #[test]
    fn the_embedded_migrations_are_the_files_of_the_folder() {
        let Source::Embedded(embedded) = EMBEDDED else {
            panic!("embedded files");
        };
        let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
        let files: BTreeMap<String, String> = fs::read_dir(folder)
            .expect("the folder")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
            .map(|path| {
                let name = path.file_name().expect("a name").to_string_lossy();
                (name.into_owned(), fs::read_to_string(&path).expect("text"))
            })
            .collect();
        let embedded: BTreeMap<_, _> = embedded.iter().map(owned).collect();
        assert_eq!(embedded, files);
    }
}
