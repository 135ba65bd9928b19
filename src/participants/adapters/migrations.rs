//! Migrations of the participants, embedded in the program.

use tbd_postgres::embedded_migrations;
use tbd_postgres::migrations::Source;

use crate::participants::domain::Participant;

const INVENTORY: Source =
    embedded_migrations!("migrations/inventory", ["000001_create_reservations"]);

const PAYMENTS: Source = embedded_migrations!("migrations/payments", ["000001_create_payments"]);

/// The files of the participant's folder in `migrations/`.
pub const fn embedded(participant: Participant) -> Source {
    match participant {
        Participant::Inventory => INVENTORY,
        Participant::Payments => PAYMENTS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::fs;

    #[test]
    fn the_embedded_migrations_are_the_files_of_the_participants_folder() {
        for participant in [Participant::Inventory, Participant::Payments] {
            let Source::Embedded(embedded) = embedded(participant) else {
                panic!("embedded files");
            };
            let embedded = embedded
                .iter()
                .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
            let folder = format!(
                "{}/migrations/{}",
                env!("CARGO_MANIFEST_DIR"),
                participant.name()
            );
            let files = fs::read_dir(folder).unwrap().map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, fs::read_to_string(&path).unwrap())
            });
            assert_eq!(embedded.collect::<BTreeMap<_, _>>(), files.collect());
        }
    }
}
