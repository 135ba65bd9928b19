//! The command line: commands only, since all settings are environment variables.

use std::ffi::OsString;

use super::dlq::{self, DlqCommand};
use super::table::{Program, variables};

/// A parsed command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandLine {
    /// No argument: run the program.
    Run,
    /// `tbd-worker dlq ...`: list, show or replay dead letters.
    Dlq(DlqCommand),
    /// `healthcheck`: check whether the running program is ready; exit with 0 or 1.
    Healthcheck,
    /// `--help` or `--version`: print this on standard output and exit with 0.
    Print(String),
    /// An unknown argument: print this on standard error and exit with 2.
    Refuse(String),
}

/// Parses `arguments`, without the program's own name.
pub fn command_line(
    program: Program,
    arguments: impl IntoIterator<Item = OsString>,
) -> CommandLine {
    let mut arguments = arguments.into_iter();
    let Some(argument) = arguments.next() else {
        return CommandLine::Run;
    };
    match argument.to_str() {
        Some("--help" | "-h") => CommandLine::Print(help(program)),
        Some("--version" | "-V") => CommandLine::Print(version(program)),
        Some("dlq") if program == Program::Worker => dlq_command(arguments),
        Some("healthcheck") => CommandLine::Healthcheck,
        _ => CommandLine::Refuse(format!(
            "{}: unknown argument {argument:?}; see {0} --help",
            program.name()
        )),
    }
}

fn dlq_command(arguments: impl Iterator<Item = OsString>) -> CommandLine {
    let arguments: Vec<String> = arguments
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match dlq::parse(&arguments) {
        Ok(command) => CommandLine::Dlq(command),
        Err(mistake) => CommandLine::Refuse(format!("tbd-worker: {mistake}")),
    }
}

fn version(program: Program) -> String {
    format!("{} {}", program.name(), env!("CARGO_PKG_VERSION"))
}

fn help(program: Program) -> String {
    let does = match program {
        Program::Api => "the HTTP API of tbd, a small distributed order-processing system",
        Program::Worker => "the worker of tbd, which processes the orders that the API accepts",
        Program::Participant => {
            "a service that takes part in the sagas of orders: inventory or payments"
        }
    };
    let (usage, commands) = match program {
        Program::Api | Program::Participant => {
            ("[healthcheck | --help | --version]", String::new())
        }
        Program::Worker => (
            "[healthcheck | dlq ... | --help | --version]",
            format!("{}\n", dlq::HELP),
        ),
    };
    let width = |of: fn(&super::Variable) -> usize| variables(program).map(of).max().unwrap_or(0);
    let name_width = width(|variable| variable.name.len());
    let default_width = width(|variable| shown_default(variable.default).len());
    let mut text = format!(
        "{name}: {does}.\n\n\
         Usage: {name} {usage}\n\n\
         healthcheck asks the running instance with the same settings for /readyz. It waits\n\
         2 s at most, and exits with 0 if the instance is ready, otherwise with 1.\n\n{commands}\
         Environment variables configure it; an empty one counts as unset.\n\n\
         {:name_width$}  {:default_width$}  Description\n",
        "Variable",
        "Default",
        name = program.name(),
    );
    for variable in variables(program) {
        text.push_str(&format!(
            "{:name_width$}  {:default_width$}  {}\n",
            variable.name,
            shown_default(variable.default),
            variable.description.replace('`', ""),
        ));
    }
    text.truncate(text.trim_end().len());
    text
}

fn shown_default(default: &str) -> &str {
    if default.is_empty() { "unset" } else { default }
}
