//! Migrations embedded in the programs.

use tbd_postgres::migrations::Source;

macro_rules! file {
    ($name:literal) => {
        (
            $name,
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/", $name)),
        )
    };
}

/// The files of `migrations/`; a test compares this list with the folder.
pub const EMBEDDED: Source = Source::Embedded(&[
    file!("000001_create_orders.up.sql"),
    file!("000001_create_orders.down.sql"),
    file!("000002_create_idempotency_keys.up.sql"),
    file!("000002_create_idempotency_keys.down.sql"),
    file!("000003_create_outbox.up.sql"),
    file!("000003_create_outbox.down.sql"),
    file!("000004_create_sagas.up.sql"),
    file!("000004_create_sagas.down.sql"),
]);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::fs;

    fn embedded() -> BTreeMap<String, String> {
        let Source::Embedded(files) = EMBEDDED else {
            panic!("embedded files");
        };
        let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        files.iter().map(owned).collect()
    }

    #[test]
    fn the_embedded_migrations_are_the_files_of_the_folder() {
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
        assert_eq!(embedded(), files);
    }

    #[test]
    fn every_migration_has_a_way_up_and_a_way_down() {
        let files = embedded();
        for name in files.keys() {
            let other = match name.strip_suffix(".up.sql") {
                Some(step) => format!("{step}.down.sql"),
                None => name.replace(".down.sql", ".up.sql"),
            };
            assert!(files.contains_key(&other), "{name} without {other}");
        }
    }
}
