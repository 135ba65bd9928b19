//! A certificate authority of the tests: good, expired and premature certificates, as PEM files.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};

use crate::own_folder;

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Now.
    Now,
    /// Until 2020.
    Past,
    /// From 2100.
    Future,
}

/// A certificate and its key, as PEM files.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

impl Files {
    /// Certificate and key in one file, for Kafka.
    pub fn keystore(&self) -> PathBuf {
        let path = self.certificate.with_extension("store");
        let text =
            [&self.key, &self.certificate].map(|path| fs::read_to_string(path).expect("PEM"));
        fs::write(&path, text.concat()).expect("write a key store");
        path
    }

    /// Replaces both files by `other`'s, each in one step, as a rotation does.
    pub fn become_those_of(&self, other: &Files) {
        for (to, from) in [
            (&self.certificate, &other.certificate),
            (&self.key, &other.key),
        ] {
            let new = to.with_extension("new");
            fs::copy(from, &new).expect("copy");
            fs::rename(new, to).expect("replace");
        }
    }
}

/// An authority with a folder of its own, which is deleted with the run's servers.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Authority {
    /// An authority of this name.
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new([]).expect("a CA");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a CA");
        let folder = own_folder("certificates");
        fs::create_dir(&folder).expect("a folder for certificates");
        fs::write(folder.join("ca.pem"), issuer.pem()).expect("write the CA");
        Authority { issuer, folder }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The authority's own certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// A new certificate for a host or a client of this name.
    pub fn issue(&self, name: &str, validity: Validity) -> Files {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        match validity {
            Validity::Now => {}
            Validity::Past => params.not_after = date_time_ymd(2020, 1, 1),
            Validity::Future => params.not_before = date_time_ymd(2100, 1, 1),
        }
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let base = crate::unique(name);
        let files = Files {
            certificate: self.folder.join(format!("{base}.pem")),
            key: self.folder.join(format!("{base}.key")),
        };
        fs::write(&files.certificate, certificate.pem()).expect("write a certificate");
        fs::write(&files.key, key.serialize_pem()).expect("write a key");
        files
    }
}
