//! `openapi.yaml`, compared with the running api.

use std::fs;
use std::process::Command;

use regex::Regex;
use tbd::orders::domain::CustomerEmail;
use tbd::orders::ports::IdempotencyKey;

use super::support::program::Stack;
use super::support::repository;

/// The first pattern in `openapi.yaml` after the line `of`.
fn pattern(of: &str) -> Regex {
    let text = fs::read_to_string(repository().join("openapi.yaml")).expect("openapi.yaml");
    let (_, after) = text.split_once(&format!("{of}\n")).expect("the line");
    let (_, after) = after.split_once("pattern: '").expect("a pattern");
    let (pattern, _) = after.split_once("'\n").expect("its end");
    Regex::new(&pattern.replace("''", "'")).expect("a regular expression")
}

#[test]
fn an_idempotency_key_is_what_the_pattern_says() {
    let pattern = pattern("    IdempotencyKey:");
    // Every text of up to six of the characters that are special in a key.
    let characters = ['"', ';', '=', '\\', 'a', 'A', '(', ' '];
    let mut texts = vec![String::new()];
    for _ in 0..6 {
        let longer = |text: &String| characters.map(|character| format!("{text}{character}"));
        texts = texts.iter().flat_map(longer).collect();
        for text in texts.iter().filter(|text| text.trim() == text.as_str()) {
            let is_key = IdempotencyKey::parse(text).is_some();
            assert_eq!(is_key, pattern.is_match(text), "{text}");
        }
    }
    for parameters in 0..=u8::MAX {
        for text in [
            format!("\"k\";a={}", char::from(parameters)),
            format!("\"k\";{}", char::from(parameters)),
        ] {
            let is_key = text.is_ascii() && IdempotencyKey::parse(&text).is_some();
            assert_eq!(is_key, pattern.is_match(&text), "{text:?}");
        }
    }
    for length in [255, 256] {
        for text in ["k".repeat(length), format!("\"{}\"", "k".repeat(length))] {
            let is_key = IdempotencyKey::parse(&text).is_some();
            assert_eq!((is_key, length), (pattern.is_match(&text), length));
        }
    }
}

#[test]
fn the_api_and_the_pattern_agree_on_every_character_of_an_address() {
    let pattern = pattern("    CustomerEmail:");
    for character in '\0'..=char::MAX {
        for text in [
            format!("a{character}@b.co"),
            format!("a@{character}b.co"),
            format!("a@b.co{character}"),
        ] {
            let is_address = CustomerEmail::new(text.clone()).is_ok();
            assert_eq!(is_address, pattern.is_match(&text), "{text:?}");
        }
    }
    // Everything in \s according to ECMA-262 (24.2), and every control character of Unicode.
    let spaces = "\t\u{b}\u{c} \u{a0}\u{1680}\u{2000}\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}\u{feff}\r\n";
    for character in spaces
        .chars()
        .chain(['\0', '\u{1f}', '\u{7f}', '\u{85}', '\u{9f}'])
    {
        let text = format!("a{character}@b.co");
        assert!(!pattern.is_match(&text), "{text:?}");
    }
    for text in [
        "", "@b.co", "a@", "a@b", "a@b@c.co", "a@.co", "a@b..co", "a@b.co.",
    ] {
        let is_address = CustomerEmail::new(text.into()).is_ok();
        assert_eq!(is_address, pattern.is_match(text), "{text:?}");
    }
}

#[test]
fn the_api_keeps_every_promise_of_openapi_yaml() {
    let stack = Stack::new();
    let api = stack.api();
    let output = Command::new(repository().join("scripts/schemathesis"))
        .arg(format!("http://{}", api.address()))
        .output()
        .expect("run scripts/schemathesis");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
