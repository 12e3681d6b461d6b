//! The two streams that a process writes to.

/// Where a piece of output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output, or the one stream of a terminal.
    Out,
    Err,
}

impl Stream {
    pub(crate) const ALL: [Self; 2] = [Self::Out, Self::Err];

    pub(crate) fn index(self) -> usize {
        match self {
            Self::Out => 0,
            Self::Err => 1,
        }
    }
}
