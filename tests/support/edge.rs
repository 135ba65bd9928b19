//! nginx with this repository's own configuration, as `make up` runs it.

use std::path::{Path, PathBuf};

use super::program::{Program, free_port};
use super::{script, unique, variable};

/// nginx in front of api instances. Stopped when dropped; its log is shown if the test fails.
pub struct Edge {
    folder: PathBuf,
    port: u16,
}

impl Edge {
    /// A running nginx in front of these instances.
    pub fn in_front_of(apis: &[Program]) -> Edge {
        let ports: Vec<u16> = apis.iter().map(Program::port).collect();
        Edge::before(&ports)
    }

    /// As [`in_front_of`](Self::in_front_of), for the instances on these ports.
    pub fn before(ports: &[u16]) -> Edge {
        let folder = Path::new(&variable("TBD_TEST_SERVERS")).join(unique("nginx"));
        let port = free_port();
        let edge = Edge { folder, port };
        let mut arguments = vec![edge.port.to_string()];
        arguments.extend(ports.iter().map(u16::to_string));
        edge.control("start", &arguments);
        edge
    }

    /// `host:port`
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn control(&self, action: &str, arguments: &[String]) {
        let folder = self.folder.to_str().expect("the folder's name is UTF-8");
        let mut all = vec!["nginx", action, folder];
        all.extend(arguments.iter().map(String::as_str));
        script(&all);
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.control("stop", &[]);
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.join("nginx-error.log"));
            let log = log.unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            println!("--- the end of nginx's log");
            for line in &lines[lines.len().saturating_sub(20)..] {
                println!("{line}");
            }
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
