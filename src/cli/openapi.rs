//! `lightd openapi`: what a running daemon answers to `GET /openapi.json`.

use std::io;

pub(crate) fn run(out: &mut dyn io::Write) -> io::Result<()> {
    out.write_all(crate::api::openapi_text().as_bytes())
}
