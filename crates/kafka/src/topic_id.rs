//! Topic ids (KIP-516) as text: in the form of Kafka's tools, and in the metadata of committed
//! offsets.
//!
//! Offsets are committed under a topic's name. The id next to an offset says which topic of that
//! name it belongs to.

use crate::ErrorCode;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use super::error::Error;

/// Prefix of a committed offset's metadata that contains a topic id.
const PREFIX: &str = "topic-id=";

/// Formats an id as `kafka-topics.sh --describe` does.
pub(crate) fn to_text(id: Uuid) -> String {
    URL_SAFE_NO_PAD.encode(id.as_bytes())
}

/// The metadata to commit with an offset of the topic with this id; empty when the id is unknown.
pub fn commit_metadata(id: Option<Uuid>) -> String {
    id.map_or_else(String::new, |id| format!("{PREFIX}{}", to_text(id)))
}

/// The id of the topic that a committed offset belongs to. `None` for metadata of other clients,
/// which contains no id.
pub fn from_commit_metadata(metadata: Option<&str>) -> Option<Uuid> {
    let text = metadata?.strip_prefix(PREFIX)?;
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    Uuid::from_slice(&bytes).ok().filter(|id| !id.is_nil())
}

/// The metadata of an application next to a committed offset.
pub(crate) fn foreign_metadata(metadata: Option<&str>) -> Option<String> {
    let is_ours = from_commit_metadata(metadata).is_some();
    metadata
        .filter(|text| !text.is_empty() && !is_ours)
        .map(ToOwned::to_owned)
}

/// Whether a leader's answer to a Fetch by id means that it has no such topic.
pub(crate) fn is_refusal(code: i16) -> bool {
    matches!(
        ErrorCode::from_code(code),
        Some(ErrorCode::UnknownTopicId | ErrorCode::InconsistentTopicId)
    )
}

/// The error of a reader of `old` that finds `new` under the same name.
pub(crate) fn replaced(topic: &str, old: Uuid, new: Uuid) -> Error {
    Error::TopicReplaced {
        topic: topic.to_owned(),
        old: to_text(old),
        new: to_text(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_next_to_a_committed_offset_is_read_back() {
        let id = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        let metadata = commit_metadata(Some(id));
        assert_eq!(metadata, "topic-id=ASNFZ4mrze8BI0VniavN7w");
        assert_eq!(from_commit_metadata(Some(&metadata)), Some(id));
        assert_eq!(commit_metadata(None), "");
    }

    #[test]
    fn metadata_of_other_clients_is_no_id() {
        let nil = commit_metadata(Some(Uuid::nil()));
        let foreign = [
            "",
            "my notes",
            "topic-id=",
            "topic-id=short",
            "topic-id=?",
            &nil,
        ];
        for metadata in foreign {
            assert_eq!(from_commit_metadata(Some(metadata)), None, "{metadata}");
            let kept = foreign_metadata(Some(metadata)).unwrap_or_default();
            assert_eq!(kept, metadata);
        }
        assert_eq!(from_commit_metadata(None), None);
        let ours = commit_metadata(Some(Uuid::from_u128(1)));
        assert_eq!(foreign_metadata(Some(&ours)), None);
    }
}
