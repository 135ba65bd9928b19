//! Replay of the fuzzer's seeds, intact and damaged in many ways: a regression test for its findings.

mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tbd_kafka::ApiKey;

/// How long a target runs on damaged seeds.
const BUDGET: Duration = Duration::from_millis(150);

fn seeds() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds")
}

fn seeds_of(target: &str) -> Vec<Vec<u8>> {
    let folder = seeds().join(target);
    let files =
        fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Pseudo-random numbers, the same in every run (xorshift64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }
}

/// Up to four changes: a bit, a byte, a huge number, a cut, a piece of another seed.
fn damage(seed: &[u8], other: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len());
        match dice.below(5) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << dice.below(8),
            1 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][dice.below(5)],
            2 => {
                let claim =
                    [0x7fff_ffff_u32, 0xffff_ffff, 0x8000_0000, 0x0100_0000, 5][dice.below(5)];
                let end = bytes.len().min(at + 4);
                bytes.splice(at..end, claim.to_be_bytes());
            }
            3 => bytes.truncate(at),
            _ => {
                let from = dice.below(other.len());
                let to = from + dice.below(other.len() - from);
                bytes.splice(at..at, other[from..to].iter().copied());
            }
        }
    }
    bytes
}

#[test]
fn no_target_panics_on_its_seeds_nor_on_damaged_ones() {
    for (name, target) in targets::ALL {
        let seeds = seeds_of(name);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        seeds.iter().for_each(|seed| target(seed));
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        let start = Instant::now();
        while start.elapsed() < BUDGET {
            let seed = &seeds[dice.below(seeds.len())];
            let other = &seeds[dice.below(seeds.len())];
            target(&damage(seed, other, &mut dice));
        }
    }
}

#[test]
fn the_fuzzer_has_one_program_for_every_target() {
    let manifest = fs::read_to_string(seeds().with_file_name("Cargo.toml")).unwrap();
    let mut programs: Vec<&str> = manifest
        .lines()
        .filter_map(|line| line.split("name = \"").nth(1)?.split('"').next())
        .filter(|name| *name != "tbd-fuzz")
        .collect();
    let mut targets: Vec<&str> = targets::ALL.iter().map(|(name, _)| *name).collect();
    programs.sort_unstable();
    targets.sort_unstable();
    // Cargo would refuse a duplicate name.
    assert_eq!(programs, targets);
    assert!(targets.windows(2).all(|pair| pair[0] != pair[1]));
    assert!(targets.iter().all(|name| targets::find(name).is_some()));
}

#[test]
fn every_answer_that_the_kafka_client_decodes_has_a_target() {
    let targets: BTreeSet<&str> = targets::ALL.iter().map(|(name, _)| *name).collect();
    for api in ApiKey::ALL {
        let mut name = "kafka".to_owned();
        for letter in format!("{api:?}").chars() {
            if letter.is_ascii_uppercase() {
                name.push('_');
            }
            name.push(letter.to_ascii_lowercase());
        }
        assert!(targets.contains(&*name), "{name}");
    }
}

#[test]
fn seeds_of_the_newest_metadata_and_of_a_login_are_accepted() {
    use bytes::Bytes;
    use tbd_kafka::internals::{self, try_scram};
    let is_login = |seed: &Vec<u8>| {
        let mut parts = seed.split(|byte| *byte == 0).map(Bytes::copy_from_slice);
        try_scram([parts.next().unwrap(), parts.next().unwrap()]).is_ok()
    };
    assert!(seeds_of("kafka_scram").iter().any(is_login));
    let (api, oldest, newest) = internals::request(3).unwrap();
    let is_newest = |seed: &Vec<u8>| {
        i16::from(seed[0]) == newest - oldest
            && internals::try_decode(api, newest, Bytes::copy_from_slice(&seed[1..])).is_ok()
    };
    assert!(seeds_of("kafka_metadata").iter().any(is_newest));
}
