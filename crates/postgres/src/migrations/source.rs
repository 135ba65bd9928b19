//! Migration files: names, order, sources.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::error::MigrationError;

/// The source of migrations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Files built into the program: the name and the text of each.
    Embedded(&'static [(&'static str, &'static str)]),
    /// The files of a folder.
    Dir(PathBuf),
}

/// A [`Source`] of files that are built into the program: `$name.up.sql` and `$name.down.sql` for each name, in a folder
/// of the package that calls the macro.
///
/// ```text
/// const EMBEDDED: Source = embedded_migrations!("migrations", ["000001_create_orders"]);
/// ```
#[macro_export]
macro_rules! embedded_migrations {
    ($folder:literal, [$($name:literal),* $(,)?]) => {
        $crate::migrations::Source::Embedded(&[$(
            $crate::embedded_migrations!(@file $folder, concat!($name, ".up.sql")),
            $crate::embedded_migrations!(@file $folder, concat!($name, ".down.sql")),
        )*])
    };
    (@file $folder:literal, $file:expr) => {
        ($file, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/", $folder, "/", $file)))
    };
}

/// One version's step up. A version may have no file for a direction. It is then recorded and
/// nothing runs, as in golang-migrate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Migration {
    pub version: i64,
    /// The names of its files, for messages.
    pub up_file: Option<String>,
    pub down_file: Option<String>,
    /// The SQL to run; nothing when there is no file for the way up.
    pub up: Option<String>,
}

impl Source {
    pub(super) fn read(&self) -> Result<Vec<Migration>, MigrationError> {
        match self {
            Self::Embedded(files) => parse(
                files
                    .iter()
                    .map(|(name, text)| ((*name).to_owned(), (*text).to_owned())),
            ),
            Self::Dir(dir) => {
                let unreadable = |source| MigrationError::Source {
                    dir: dir.clone(),
                    source,
                };
                let mut files = Vec::new();
                for entry in fs::read_dir(dir).map_err(unreadable)? {
                    let entry = entry.map_err(unreadable)?;
                    let Ok(name) = entry.file_name().into_string() else {
                        continue;
                    };
                    if entry.path().is_dir() || FileName::parse(&name).is_none() {
                        continue;
                    }
                    files.push((name, fs::read_to_string(entry.path()).map_err(unreadable)?));
                }
                parse(files)
            }
        }
    }
}

fn parse(
    files: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<Migration>, MigrationError> {
    let mut migrations = BTreeMap::new();
    for (name, text) in files {
        let Some(FileName { version, direction }) = FileName::parse(&name) else {
            continue;
        };
        let migration: &mut Migration = migrations.entry(version).or_insert_with(|| Migration {
            version,
            up_file: None,
            down_file: None,
            up: None,
        });
        let file = match direction {
            Direction::Up => {
                migration.up = Some(text);
                &mut migration.up_file
            }
            Direction::Down => &mut migration.down_file,
        };
        if let Some(other) = file.replace(name.clone()) {
            return Err(MigrationError::Duplicate {
                files: [other, name],
            });
        }
    }
    Ok(migrations.into_values().collect())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

/// The content of a file's name.
#[derive(Debug, PartialEq, Eq)]
struct FileName {
    version: i64,
    direction: Direction,
}

impl FileName {
    /// `^([0-9]+)_(.*)\.(down|up)\.(.*)$`; other names are ignored. So are versions beyond 2^63 -
    /// 1, which fit no `schema_migrations` row.
    fn parse(name: &str) -> Option<Self> {
        let (version, rest) = name.split_once('_')?;
        if version.is_empty() || !version.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        // `.*` is greedy, so the last of several directions in a name counts.
        let direction = match (rest.rfind(".up."), rest.rfind(".down.")) {
            (None, None) => return None,
            (up, down) if up > down => Direction::Up,
            _ => Direction::Down,
        };
        Some(Self {
            version: version.parse().ok()?,
            direction,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(names: &[&str]) -> Result<Vec<Migration>, MigrationError> {
        parse(
            names
                .iter()
                .map(|name| ((*name).to_owned(), format!("-- {name}"))),
        )
    }

    #[test]
    fn versions_are_ordered_by_number_and_may_have_gaps() {
        let versions: Vec<i64> = parsed(&["10_b.up.sql", "2_a.up.sql", "000007_c.down.sql"])
            .expect("no duplicates")
            .iter()
            .map(|migration| migration.version)
            .collect();
        assert_eq!(versions, [2, 7, 10]);
    }

    #[test]
    fn a_version_without_a_file_for_the_way_up_runs_nothing() {
        let migrations = parsed(&["1_a.down.sql"]).expect("no duplicates");
        assert_eq!(migrations[0].up, None);
    }

    #[test]
    fn two_files_for_one_step_are_refused() {
        let error = parsed(&["1_a.up.sql", "01_b.up.sql"]).expect_err("a duplicate");
        assert!(
            error.to_string().contains("1_a.up.sql") && error.to_string().contains("01_b.up.sql")
        );
    }

    #[test]
    fn other_names_are_ignored() {
        for name in [
            "README.md",
            "_a.up.sql",
            "a_1.up.sql",
            "1a.up.sql",
            "1_a.sideways.sql",
            "1_a.up",
            "-1_a.up.sql",
        ] {
            assert_eq!(FileName::parse(name), None, "{name}");
        }
        assert_eq!(FileName::parse("99999999999999999999_a.up.sql"), None);
    }

    #[test]
    fn names_are_read_as_golang_migrate_reads_them() {
        let up = |version| {
            Some(FileName {
                version,
                direction: Direction::Up,
            })
        };
        assert_eq!(FileName::parse("000001_create_orders.up.sql"), up(1));
        assert_eq!(
            FileName::parse("20260101120000_.up."),
            up(20_260_101_120_000)
        );
        assert_eq!(FileName::parse("1_a.down.b.up.sql"), up(1));
    }
}
