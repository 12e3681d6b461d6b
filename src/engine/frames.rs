//! The engine's way to put two output streams on one connection, and terminals, which have only one.
//!
//! Without a terminal every piece of output comes with a header of eight bytes: the stream, three
//! zeros, the length. A frame is handed on as it arrives and never collected, so its length costs no
//! memory; a header that makes no sense is an error and not a wait for bytes that never come.

use bytes::{Buf, Bytes, BytesMut};

use crate::domain::stream::Stream;

/// Some bytes of one stream; where it begins and ends means nothing. It shares its buffer with its
/// neighbours: copy what is to be kept for long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) stream: Stream,
    pub(crate) bytes: Bytes,
}

pub(super) const HEADER_BYTES: usize = 8;
/// The engine's frames are of some 16 KiB; a "length" far above that is not one.
pub(super) const FRAME_MAX_BYTES: usize = 16 << 20;

/// A frame's beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source: Source,
    pub(super) length: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Output(Stream),
    /// A word from the engine itself: it failed.
    Engine,
}

impl Header {
    /// Takes a header off the buffer; `Ok(None)` if it is not all there yet.
    pub(super) fn take(buffer: &mut BytesMut) -> Result<Option<Self>, String> {
        let Some(&[stream, zero1, zero2, zero3, l3, l2, l1, l0]) = buffer.first_chunk() else {
            return Ok(None);
        };
        let source = match stream {
            // Standard input, which the engine shows as output.
            0 | 1 => Source::Output(Stream::Out),
            2 => Source::Output(Stream::Err),
            3 => Source::Engine,
            _ => return Err(format!("a frame of an unknown stream, {stream}")),
        };
        let length = u32::from_be_bytes([l3, l2, l1, l0]) as usize;
        if [zero1, zero2, zero3] != [0; 3] || length > FRAME_MAX_BYTES {
            return Err(format!("a frame with a bad header, {length} bytes long"));
        }
        buffer.advance(HEADER_BYTES);
        Ok(Some(Self { source, length }))
    }
}

/// Turns what was read into chunks.
#[derive(Debug)]
pub(super) enum Decoder {
    /// A terminal's output, as it is.
    Raw,
    Framed {
        stream: Stream,
        left: usize,
    },
}

impl Decoder {
    pub(super) fn new(tty: bool) -> Self {
        if tty { Self::Raw } else { Self::Framed { stream: Stream::Out, left: 0 } }
    }

    /// The next chunk, or `Ok(None)` if more must be read first.
    pub(super) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Chunk>, String> {
        match self {
            Self::Raw if buffer.is_empty() => Ok(None),
            Self::Raw => Ok(Some(Chunk { stream: Stream::Out, bytes: buffer.split().freeze() })),
            Self::Framed { stream, left } => {
                while *left == 0 {
                    let Some(header) = Header::take(buffer)? else { return Ok(None) };
                    match header.source {
                        Source::Output(of) => (*stream, *left) = (of, header.length),
                        Source::Engine => {
                            let words = &buffer[..buffer.len().min(header.length).min(512)];
                            return Err(String::from_utf8_lossy(words).into_owned());
                        }
                    }
                }
                let length = buffer.len().min(*left);
                if length == 0 {
                    return Ok(None);
                }
                *left -= length;
                Ok(Some(Chunk { stream: *stream, bytes: buffer.split_to(length).freeze() }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in crate::engine) fn frame(stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("a short payload");
        [&[stream, 0, 0, 0][..], &length.to_be_bytes(), payload].concat()
    }

    fn decode(tty: bool, pieces: &[&[u8]]) -> Result<(Vec<u8>, Vec<u8>), String> {
        let (mut decoder, mut buffer) = (Decoder::new(tty), BytesMut::new());
        let (mut out, mut err) = (Vec::new(), Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            while let Some(chunk) = decoder.next(&mut buffer)? {
                match chunk.stream {
                    Stream::Out => out.extend_from_slice(&chunk.bytes),
                    Stream::Err => err.extend_from_slice(&chunk.bytes),
                }
            }
        }
        Ok((out, err))
    }

    #[test]
    fn a_terminals_bytes_are_never_taken_for_a_header() {
        let (out, _) = decode(true, &[b"\x01AAAAAAAAAA", b"\x02\0\0\0"]).expect("bytes");
        assert_eq!(out, b"\x01AAAAAAAAAA\x02\0\0\0");
    }

    #[test]
    fn a_header_that_makes_no_sense_is_an_error() {
        assert!(decode(false, &[b"plain text, no frames"]).is_err());
        assert!(decode(false, &[b"\x01\0\0\0\xff\xff\xff\xff"]).is_err());
        assert!(decode(false, &[b"\x01\0\x01\0\0\0\0\x01a"]).is_err());
    }

    #[test]
    fn a_word_of_the_engine_is_an_error_with_its_text() {
        let why = decode(false, &[&frame(3, b"log driver broke")]).expect_err("an error");
        assert_eq!(why, "log driver broke");
    }

    proptest! {
        #[test]
        fn frames_cut_anywhere_give_the_same_bytes(
            frames in prop::collection::vec((1u8..=2, prop::collection::vec(any::<u8>(), 0..40)), 0..12),
            cut in 1usize..20,
        ) {
            let wire: Vec<u8> =
                frames.iter().flat_map(|(stream, payload)| frame(*stream, payload)).collect();
            let of = |wanted: u8| -> Vec<u8> {
                let mine = frames.iter().filter(|(stream, _)| *stream == wanted);
                mine.flat_map(|(_, payload)| payload.clone()).collect()
            };
            let pieces: Vec<&[u8]> = wire.chunks(cut).collect();
            prop_assert_eq!(decode(false, &pieces), Ok((of(1), of(2))));
        }
    }
}
