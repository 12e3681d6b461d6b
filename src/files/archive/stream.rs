//! An archive that is written to its reader and nowhere else.
//!
//! Called for downloads. Nothing of it is kept but what the format needs for its end. A failure on the way
//! leaves the reader with an archive that is cut off: telling him is the caller's business.

use std::io::Write;

use super::ArchiveFormat;
use super::pack::PackRequest;
use crate::domain::path::RelPath;
use crate::files::error::FileError;
use crate::files::progress::Progress;
use crate::files::staging::Staging;
use crate::files::volume::Volume;

/// What to send.
#[derive(Clone, Debug)]
pub(crate) struct StreamRequest {
    pub(crate) format: ArchiveFormat,
    /// The folder that names in the archive are counted from.
    pub(crate) base: RelPath,
    /// What of it; all if there are none.
    pub(crate) paths: Vec<RelPath>,
    /// One of the format's.
    pub(crate) level: u32,
}

impl Volume {
    /// Writes an archive to `out` as it comes to be. What fails on the way leaves `out` cut off.
    pub(crate) fn pack_stream<W: Write + Send>(
        &self,
        request: StreamRequest,
        out: W,
        progress: &Progress,
    ) -> Result<(), FileError> {
        let StreamRequest { format, base, paths, level } = request;
        let request = PackRequest {
            format,
            output: RelPath::root(),
            paths,
            base,
            ignore: Vec::new(),
            level,
            overwrite: false,
        };
        // For what the format has to keep until its end.
        let staging = Staging::new(self.root())?;
        let (mut out, _) = self.pack_to(&request, None, out, &staging, progress)?;
        out.flush().map_err(|error| FileError::from_io("send", &"the archive", error))
    }
}
