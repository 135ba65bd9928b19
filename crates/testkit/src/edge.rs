//! nginx with this repository's own configuration, as `make up` runs it.

use std::path::{Path, PathBuf};

use crate::program::{Program, free_port};
use crate::{own_folder, script};

/// nginx in front of api instances. Stopped when dropped; its log is shown if the test fails.
pub struct Edge {
    folder: PathBuf,
    port: u16,
    grpc_port: u16,
}

impl Edge {
    /// A running nginx in front of these instances.
    pub fn in_front_of(apis: &[Program]) -> Edge {
        Edge::with_twins(apis, &[])
    }

    /// As [`in_front_of`](Self::in_front_of), by TLS, trusting the CA in this file.
    pub fn by_tls(apis: &[Program], ca_file: &Path) -> Edge {
        let apis = apis.iter().map(instance);
        let ca = format!("ca={}", ca_file.display());
        Edge::start(apis.chain([ca]))
    }

    /// As [`in_front_of`](Self::in_front_of), with twins' apis, by name, below `/twins/NAME/`.
    pub fn with_twins(apis: &[Program], twins: &[(&str, &Program)]) -> Edge {
        let apis = apis.iter().map(instance);
        let twins = twins
            .iter()
            .map(|(name, api)| format!("{name}={}", api.port()));
        Edge::start(apis.chain(twins))
    }

    /// As [`in_front_of`](Self::in_front_of), for the instances on these ports, each for HTTP and for gRPC.
    pub fn before(ports: &[(u16, u16)]) -> Edge {
        Edge::start(ports.iter().map(|(http, grpc)| format!("{http}:{grpc}")))
    }

    fn start(instances: impl Iterator<Item = String>) -> Edge {
        let folder = own_folder("nginx");
        let (port, grpc_port) = (free_port(), free_port());
        let edge = Edge {
            folder,
            port,
            grpc_port,
        };
        let mut arguments = vec![edge.port.to_string(), edge.grpc_port.to_string()];
        arguments.extend(instances);
        edge.control("start", &arguments);
        edge
    }

    /// `host:port`
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `host:port` for gRPC.
    pub fn grpc_address(&self) -> String {
        format!("127.0.0.1:{}", self.grpc_port)
    }

    fn control(&self, action: &str, arguments: &[String]) {
        let folder = self.folder.to_str().expect("the folder's name is UTF-8");
        let mut all = vec!["nginx", action, folder];
        all.extend(arguments.iter().map(String::as_str));
        script(&all);
    }
}

/// An api for `scripts/server nginx`.
fn instance(api: &Program) -> String {
    format!("{}:{}", api.port(), api.grpc_port())
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
