//! The calls of a saga as JSON, for the column `calls`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::orders::domain::saga::{Answer, Call, Command};

#[derive(Serialize, Deserialize)]
struct CallJson {
    command: String,
    attempts: u32,
    announced_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    answered_at: Option<Timestamp>,
    /// Why the command was refused. An answer without a reason means that it is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

/// The JSON of `calls`.
pub(super) fn to_json(calls: &[Call]) -> String {
    let json = |call: &Call| {
        let refused = match &call.answer {
            Some((Answer::Refused(reason), _)) => Some(reason.clone()),
            Some((Answer::Done, _)) | None => None,
        };
        CallJson {
            command: call.command.as_str().to_owned(),
            attempts: call.attempts,
            announced_at: call.announced_at,
            answered_at: call.answer.as_ref().map(|(_, at)| *at),
            refused,
        }
    };
    // Only a failing `Serialize` or a key that is not a string can fail; our types have neither.
    serde_json::to_string(&calls.iter().map(json).collect::<Vec<_>>()).unwrap_or_default()
}

/// The calls from their JSON.
///
/// # Errors
/// A sentence about JSON that [`to_json`] did not write.
pub(super) fn from_json(text: &str) -> Result<Vec<Call>, String> {
    let calls: Vec<CallJson> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let call = |json: CallJson| {
        let answer = match json.refused {
            Some(reason) => Answer::Refused(reason),
            None => Answer::Done,
        };
        Ok(Call {
            command: Command::from_word(&json.command)
                .ok_or_else(|| format!("{:?} is no command", json.command))?,
            attempts: json.attempts,
            announced_at: json.announced_at,
            answer: json.answered_at.map(|at| (answer, at)),
        })
    };
    calls.into_iter().map(call).collect()
}
