//! How a volume is held to its size.
//!
//! Used wherever a volume with a size is made, stored or shown. What a volume rests on is chosen once; a text
//! that names no backend is the store's error to tell.

use serde::{Deserialize, Serialize};

/// Who holds a volume to its size. Chosen once, when a volume is given a size, and stored with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum QuotaBackend {
    /// lightd: it counts, and refuses what it would write itself beyond the size.
    Soft,
    /// The kernel: the volume is a file system of its own, in an image of that size.
    Image,
    /// The kernel: the volume is a project with a quota on the file system of all volumes.
    Project,
}

impl QuotaBackend {
    pub(crate) const ALL: [Self; 3] = [Self::Project, Self::Image, Self::Soft];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Soft => "soft",
            Self::Image => "image",
            Self::Project => "project",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|backend| backend.as_str() == text)
    }

    /// Who holds it, as the wire names it.
    pub(crate) fn enforced(self) -> &'static str {
        match self {
            Self::Soft => "soft",
            Self::Image | Self::Project => "kernel",
        }
    }
}

/// What a volume with a size rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backing {
    pub(crate) backend: QuotaBackend,
    /// The number under which the kernel counts it, with [`QuotaBackend::Project`].
    pub(crate) project: Option<u32>,
}

impl Backing {
    pub(crate) fn new(backend: QuotaBackend) -> Self {
        Self { backend, project: None }
    }
}
