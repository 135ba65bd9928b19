//! Arguments of the commands `tbd-worker dlq`.

use std::fmt;
use std::str::FromStr;

/// A command on the dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DlqCommand {
    /// Show a line for each letter.
    List,
    /// Show one whole letter.
    Show(Position),
    /// Replay letters to their topics.
    Replay {
        /// Which letters.
        which: Which,
        /// Only print what a replay would do.
        dry_run: bool,
    },
}

/// Some dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// All letters.
    All,
    /// The letters at these positions.
    These(Vec<Position>),
}

/// The position of a record in its topic, written `PARTITION:OFFSET`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The partition's number, from 0.
    pub partition: i32,
    /// The record's offset there, from 0.
    pub offset: i64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.partition, self.offset)
    }
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Digits only: parse() would accept a sign, too.
        let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        text.split_once(':')
            .filter(|(partition, offset)| number(partition) && number(offset))
            .and_then(|(partition, offset)| {
                Some(Position {
                    partition: partition.parse().ok()?,
                    offset: offset.parse().ok()?,
                })
            })
            .ok_or_else(|| format!("{text:?} is no position; write PARTITION:OFFSET, such as 3:17"))
    }
}

/// The part of `--help` about these commands.
pub(super) const HELP: &str = "\
Commands:
  dlq list                                   Show the dead letters, a line for each
  dlq show PARTITION:OFFSET                  Show one of them, with its value
  dlq replay PARTITION:OFFSET... [--dry-run] Send these back to the topic they came from
  dlq replay --all [--dry-run]               Send all of them back
";

/// Parses the arguments after `dlq`.
///
/// # Errors
/// One sentence about the mistake.
pub(super) fn parse(arguments: &[&str]) -> Result<DlqCommand, String> {
    match arguments {
        ["list"] => Ok(DlqCommand::List),
        ["show", position] => Ok(DlqCommand::Show(position.parse()?)),
        ["show", ..] => Err("dlq show takes one position, such as 3:17".to_owned()),
        ["replay", which @ ..] => replay(which),
        ["list", unknown, ..] => Err(format!("dlq list takes no argument, but got {unknown:?}")),
        [unknown, ..] => Err(format!(
            "unknown command dlq {unknown:?}; there are list, show and replay"
        )),
        [] => Err("dlq needs a command: list, show or replay".to_owned()),
    }
}

fn replay(arguments: &[&str]) -> Result<DlqCommand, String> {
    let (mut all, mut dry_run, mut positions) = (false, false, Vec::new());
    for argument in arguments {
        match *argument {
            "--all" => all = true,
            "--dry-run" => dry_run = true,
            position => positions.push(position.parse()?),
        }
    }
    let which = match (all, positions.is_empty()) {
        (true, true) => Which::All,
        (false, false) => Which::These(positions),
        _ => return Err("dlq replay takes either positions, such as 3:17, or --all".to_owned()),
    };
    Ok(DlqCommand::Replay { which, dry_run })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(partition: i32, offset: i64) -> Position {
        Position { partition, offset }
    }

    #[test]
    fn every_command_is_understood() {
        let replay = |which, dry_run| DlqCommand::Replay { which, dry_run };
        for (arguments, command) in [
            (&["list"][..], DlqCommand::List),
            (&["show", "3:17"], DlqCommand::Show(at(3, 17))),
            (
                &["replay", "3:17", "0:0"],
                replay(Which::These(vec![at(3, 17), at(0, 0)]), false),
            ),
            (&["replay", "--all"], replay(Which::All, false)),
            (&["replay", "--dry-run", "--all"], replay(Which::All, true)),
        ] {
            assert_eq!(parse(arguments), Ok(command), "{arguments:?}");
        }
    }

    #[test]
    fn every_mistake_gets_a_sentence_that_names_it() {
        for (arguments, word) in [
            (&[][..], "list, show or replay"),
            (&["remove"], "\"remove\""),
            (&["list", "3:17"], "\"3:17\""),
            (&["show"], "one position"),
            (&["show", "1:1", "1:2"], "one position"),
            (&["show", "17"], "\"17\""),
            (&["show", "-1:0"], "\"-1:0\""),
            (&["show", "0:+1"], "\"0:+1\""),
            (&["show", ":"], "\":\""),
            (&["show", "0:99999999999999999999"], "PARTITION:OFFSET"),
            (&["replay"], "either"),
            (&["replay", "--dry-run"], "either"),
            (&["replay", "--all", "1:1"], "either"),
            (&["replay", "--everything"], "\"--everything\""),
        ] {
            let mistake = parse(arguments).unwrap_err();
            assert!(mistake.contains(word), "{arguments:?}: {mistake}");
        }
    }
}
