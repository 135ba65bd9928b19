//! A value made from files, and made again when they change.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tbd_deadline::lock;

use super::files::FileError;

/// A value made from files. There is no thread: [`get`](Self::get) looks at the files.
pub struct Reloading<T> {
    files: Vec<PathBuf>,
    load: Box<dyn Fn() -> Result<T, FileError> + Send + Sync>,
    current: Mutex<Current<T>>,
}

struct Current<T> {
    value: Arc<T>,
    /// The files' state when they were last read, so that unusable ones are not read again in vain.
    stamps: Vec<Option<Stamp>>,
    /// The latest warning, so that one state of the files is reported once.
    complaint: Option<String>,
}

/// What changes when a file is written or replaced: inode, size, and time of change.
type Stamp = (u64, u64, i64, i64);

impl<T> Reloading<T> {
    /// Makes the value with `load`, which reads `files`.
    ///
    /// # Errors
    /// That of `load`.
    pub fn new(
        files: Vec<PathBuf>,
        load: impl Fn() -> Result<T, FileError> + Send + Sync + 'static,
    ) -> Result<Self, FileError> {
        // Taken before the files are read: a change in between is noticed later.
        let stamps = stamps(&files);
        let current = Mutex::new(Current {
            value: Arc::new(load()?),
            stamps,
            complaint: None,
        });
        Ok(Self {
            files,
            load: Box::new(load),
            current,
        })
    }

    /// The value of the files as they are now. Reads the files' metadata, and the files if they
    /// have changed. If they cannot be used, for example in the middle of their replacement, the
    /// earlier value stays in use and a warning is logged.
    pub fn get(&self) -> Arc<T> {
        let stamps = stamps(&self.files);
        {
            let current = lock(&self.current);
            if current.stamps == stamps {
                return Arc::clone(&current.value);
            }
        }
        let loaded = (self.load)();
        let mut current = lock(&self.current);
        current.stamps = stamps;
        match loaded {
            Ok(value) => {
                log::info!("read {} again", self.names());
                current.value = Arc::new(value);
                current.complaint = None;
            }
            Err(error) => {
                let complaint = Some(error.to_string());
                if current.complaint != complaint {
                    log::warn!("{error}; the earlier content stays in use");
                    current.complaint = complaint;
                }
            }
        }
        Arc::clone(&current.value)
    }

    fn names(&self) -> String {
        let names: Vec<String> = self
            .files
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        names.join(", ")
    }
}

impl<T> fmt::Debug for Reloading<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reloading").field(&self.files).finish()
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |file: &PathBuf| {
        let metadata = fs::metadata(file).ok()?;
        // ctime changes with every write and rename, even where a tool preserves mtime.
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        Some((metadata.ino(), metadata.len(), changed.0, changed.1))
    };
    files.iter().map(stamp).collect()
}

/// The token in a file, without the white space around it. Reads the file.
///
/// # Errors
/// The file cannot be read, is empty, or contains white space or control characters.
pub fn token_file(path: &Path) -> Result<Reloading<String>, FileError> {
    let path = path.to_owned();
    Reloading::new(vec![path.clone()], move || {
        let text = fs::read_to_string(&path).map_err(|error| FileError::new(&path, error))?;
        let token = text.trim();
        // The token goes into headers and messages as it is.
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(FileError::new(&path, "it must contain one token"));
        }
        Ok(token.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn an_unusable_file_is_read_once_until_it_changes() {
        let path = std::env::temp_dir().join(format!("tbd-unusable-{}", std::process::id()));
        fs::write(&path, "good").unwrap();
        let reads = Arc::new(AtomicUsize::new(0));
        let (file, counted) = (path.clone(), Arc::clone(&reads));
        let value = Reloading::new(vec![path.clone()], move || {
            counted.fetch_add(1, Ordering::Relaxed);
            let text = fs::read_to_string(&file).unwrap_or_default();
            match text.as_str() {
                "bad" => Err(FileError::new(&file, "bad")),
                _ => Ok(text),
            }
        });
        let value = value.unwrap();
        fs::write(&path, "bad").unwrap();
        for _ in 0..3 {
            assert_eq!(*value.get(), "good");
        }
        assert_eq!(reads.load(Ordering::Relaxed), 2);
        fs::write(&path, "better").unwrap();
        assert_eq!(*value.get(), "better");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_replaced_file_is_read_again_and_an_unusable_one_is_not_used() {
        let path = std::env::temp_dir().join(format!("tbd-token-{}", std::process::id()));
        fs::write(&path, " first\n").unwrap();
        let token = token_file(&path).unwrap();
        assert_eq!(*token.get(), "first");
        assert!(Arc::ptr_eq(&token.get(), &token.get()));
        fs::write(&path, "").unwrap();
        assert_eq!(*token.get(), "first");
        fs::remove_file(&path).unwrap();
        assert_eq!(*token.get(), "first");
        fs::write(&path, "second").unwrap();
        assert_eq!(*token.get(), "second");
        fs::remove_file(&path).unwrap();
        let error = token_file(&path).unwrap_err().to_string();
        assert!(error.contains("tbd-token-"), "{error}");
    }
}
