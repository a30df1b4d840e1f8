//! How a node presents itself: `state/identity.json`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::file_owner::refusal_hint;
use crate::whole_file;

/// What a Hello says of a node beside its key. Nothing of it is proved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Profile {
    /// Chosen by the operator; at most [`Profile::MAX_NAME_BYTES`] bytes.
    pub name: String,
    /// A line about the node.
    pub bio: String,
    /// What it is good at.
    pub skills: Vec<String>,
}

/// The profile cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The operating system says no.
    #[error("{}: {source}{}", path.display(), refusal_hint(path, source))]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what `id set-name` writes.
    #[error("{}: expected a JSON object with name, bio and skills: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// The name cannot be shown safely.
    #[error("the name must be 1 to {max} bytes of printable text", max = Profile::MAX_NAME_BYTES)]
    Name,
}

impl Profile {
    /// Longest name, in bytes of UTF-8.
    pub const MAX_NAME_BYTES: usize = 64;

    /// Reads the profile; a missing file is the empty profile.
    ///
    /// # Errors
    /// The file cannot be read or is not JSON of this shape.
    pub fn load(path: &Path) -> Result<Profile, ProfileError> {
        match fs::read(path) {
            Ok(json) => serde_json::from_slice(&json)
                .map_err(|source| ProfileError::Json { path: path.to_owned(), source }),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(Profile::default()),
            Err(source) => Err(ProfileError::Io { path: path.to_owned(), source }),
        }
    }

    /// The same with another name.
    ///
    /// # Errors
    /// The name is empty, too long, or has control characters (it is printed on terminals and in logs).
    pub fn with_name(self, name: &str) -> Result<Profile, ProfileError> {
        let name = name.trim();
        if name.is_empty() || name.len() > Profile::MAX_NAME_BYTES || name.chars().any(char::is_control) {
            return Err(ProfileError::Name);
        }
        Ok(Profile { name: name.to_owned(), ..self })
    }

    /// Writes the profile, whole or not at all.
    ///
    /// # Errors
    /// The directory cannot be made or the file not written.
    pub fn save(&self, path: &Path) -> Result<(), ProfileError> {
        self.write(path).map_err(|source| ProfileError::Io { path: path.to_owned(), source })
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(whole_file::directory(path))?;
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        whole_file::replace(path, 0o644, &json)
    }
}
