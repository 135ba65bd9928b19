//! Timeline and violations of a chaos run.

use std::sync::Mutex;
use std::time::Instant;

use super::plan::Plan;

/// Violations printed in full; the rest are counted.
const SHOWN_MAX: usize = 30;

pub struct Journal {
    begun: Instant,
    violations: Mutex<Vec<String>>,
}

impl Journal {
    pub fn new() -> Journal {
        println!("          begun at {}", jiff::Timestamp::now());
        Journal {
            begun: Instant::now(),
            violations: Mutex::new(Vec::new()),
        }
    }

    /// A line of the timeline.
    pub fn say(&self, what: &str) {
        println!("{} {what}", self.now());
    }

    /// Adds a violation.
    pub fn violation(&self, what: &str) {
        let line = format!("{} {what}", self.now());
        let mut violations = self.violations.lock().expect("violations");
        if violations.len() < SHOWN_MAX {
            println!("{} VIOLATION: {what}", self.now());
        }
        violations.push(line);
    }

    pub fn is_violated(&self) -> bool {
        !self.violations.lock().expect("violations").is_empty()
    }

    /// Prints the result, and fails the test if there was a violation.
    pub fn verdict(&self, plan: &Plan) {
        let violations = self.violations.lock().expect("violations");
        if violations.is_empty() {
            self.say(&format!("verdict: nothing lost, nothing twice ({plan})"));
            return;
        }
        self.say(&format!(
            "verdict: {} violations ({plan})",
            violations.len()
        ));
        let shown = &violations[..violations.len().min(SHOWN_MAX)];
        panic!(
            "{} violations, {plan}:\n{}",
            violations.len(),
            shown.join("\n")
        );
    }

    fn now(&self) -> String {
        format!("{:7.1} s", self.begun.elapsed().as_secs_f64())
    }
}
