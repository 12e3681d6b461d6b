//! A container's output as a reader gets it: from lightd's WebSocket, or raw from the engine's attach.
//!
//! Both are read as cheaply as each other, by the same runtime, so that what differs is lightd.

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use crate::client::{Result, TOKEN};

const READ_BYTES: usize = 64 * 1024;
/// Room in the kernel for a reader that never reads.
const SLEEPER_BYTES: u32 = 4 * 1024;

/// Some output.
pub(crate) struct Piece {
    pub(crate) bytes: Bytes,
    /// How many lines end in it.
    pub(crate) lines: u64,
    /// The number of its last line, where lightd gave one.
    pub(crate) seq: Option<u64>,
}

pub(crate) enum Output {
    Socket { stream: TcpStream, buffer: BytesMut },
    Raw { stream: UnixStream, buffer: BytesMut, left: Option<usize> },
}

impl Output {
    /// lightd's WebSocket of a container, console only.
    pub(crate) async fn socket(port: u16, id: &str) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let (stream, buffer) = upgrade(stream, port, id).await?;
        Ok(Self::Socket { stream, buffer })
    }

    /// The same for one that will not be read.
    pub(crate) async fn sleeper(port: u16, id: &str) -> Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(SLEEPER_BYTES)?;
        let stream = socket.connect(([127, 0, 0, 1], port).into()).await?;
        Ok(upgrade(stream, port, id).await?.0)
    }

    /// The engine's attach of a container.
    pub(crate) async fn raw(id: &str, tty: bool) -> Result<Self> {
        let mut stream = UnixStream::connect("/var/run/docker.sock").await?;
        let head = format!(
            "POST /containers/{id}/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\n\
             Host: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        loop {
            stream.read_buf(&mut buffer).await?;
            if take_head(&mut buffer, "101")? {
                return Ok(Self::Raw { stream, buffer, left: (!tty).then_some(0) });
            }
        }
    }

    /// Writes to the standard input of a container that is attached to.
    pub(crate) async fn write(&mut self, line: &str) -> Result<()> {
        match self {
            Self::Raw { stream, .. } => Ok(stream.write_all(line.as_bytes()).await?),
            Self::Socket { .. } => Err("commands go over REST here".into()),
        }
    }

    pub(crate) async fn next(&mut self) -> Result<Piece> {
        loop {
            let piece = match self {
                Self::Socket { stream, buffer } => next_frame(stream, buffer).await?,
                Self::Raw { buffer, left, .. } => next_chunk(buffer, left)?,
            };
            if let Some(piece) = piece {
                return Ok(piece);
            }
            let read = match self {
                Self::Socket { stream, buffer } => fill(stream, buffer).await?,
                Self::Raw { stream, buffer, .. } => fill(stream, buffer).await?,
            };
            if read == 0 {
                return Err("the output has ended".into());
            }
        }
    }
}

async fn fill(from: &mut (impl AsyncReadExt + Unpin), buffer: &mut BytesMut) -> Result<usize> {
    if buffer.capacity() - buffer.len() < READ_BYTES / 2 {
        buffer.reserve(READ_BYTES);
    }
    Ok(from.read_buf(buffer).await?)
}

async fn upgrade(mut stream: TcpStream, port: u16, id: &str) -> Result<(TcpStream, BytesMut)> {
    let head = format!(
        "GET /ws/{id}?events=console&token={TOKEN} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut buffer = BytesMut::new();
    loop {
        stream.read_buf(&mut buffer).await?;
        if take_head(&mut buffer, "101")? {
            return Ok((stream, buffer));
        }
    }
}

/// Takes an answer's head off the buffer once it is all there.
fn take_head(buffer: &mut BytesMut, status: &str) -> Result<bool> {
    let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(false);
    };
    let head = buffer.split_to(end + 4);
    let head = String::from_utf8_lossy(&head);
    if head.split(' ').nth(1) == Some(status) {
        Ok(true)
    } else {
        Err(format!("refused: {head}{}", String::from_utf8_lossy(buffer)).into())
    }
}

async fn next_frame(stream: &mut TcpStream, buffer: &mut BytesMut) -> Result<Option<Piece>> {
    loop {
        let [first, second, ..] = buffer[..] else { return Ok(None) };
        let (head, length) = match second {
            126 if buffer.len() >= 4 => {
                (4, usize::from(u16::from_be_bytes([buffer[2], buffer[3]])))
            }
            127 if buffer.len() >= 10 => (10, usize::try_from((&buffer[2..10]).get_u64())?),
            126 | 127 => return Ok(None),
            short => (2, usize::from(short)),
        };
        if buffer.len() < head + length {
            buffer.reserve(head + length - buffer.len());
            return Ok(None);
        }
        buffer.advance(head);
        let payload = buffer.split_to(length).freeze();
        match first & 0x0f {
            1 => return piece_of(payload).map(Some),
            // A pong with an empty mask.
            9 => stream.write_all(&[0x8a, 0x80, 0, 0, 0, 0]).await?,
            code => return Err(format!("a frame of kind {code}: {payload:?}").into()),
        }
    }
}

/// What a `console` event holds, without reading the JSON: a line feed is `\n` in it.
fn piece_of(bytes: Bytes) -> Result<Piece> {
    if !bytes.starts_with(br#"{"event":"console""#) {
        return Err(format!("no output: {}", String::from_utf8_lossy(&bytes)).into());
    }
    let lines = bytes.windows(2).filter(|pair| *pair == br"\n").count() as u64;
    let tail = std::str::from_utf8(&bytes[bytes.len().saturating_sub(80)..]).unwrap_or_default();
    let digits = tail.rsplit(r#""seq":"#).next().unwrap_or_default();
    let digits = digits.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    let seq: u64 = digits.parse().map_err(|_| format!("no number in {tail}"))?;
    // Of a line that is still forming, the number does not count yet.
    let seq = seq - u64::from(tail.contains(r#""partial":true"#));
    Ok(Piece { bytes, lines, seq: Some(seq) })
}

/// `left`: of the frame that is being read, where the output has frames.
fn next_chunk(buffer: &mut BytesMut, left: &mut Option<usize>) -> Result<Option<Piece>> {
    let length = match left {
        None => buffer.len(),
        Some(left) => {
            if *left == 0 {
                let Some(header) = buffer.first_chunk::<8>() else { return Ok(None) };
                *left = (&header[4..]).get_u32() as usize;
                buffer.advance(8);
            }
            let length = buffer.len().min(*left);
            *left -= length;
            length
        }
    };
    if length == 0 {
        return Ok(None);
    }
    let bytes = buffer.split_to(length).freeze();
    let lines = bytes.iter().filter(|&&byte| byte == b'\n').count() as u64;
    Ok(Some(Piece { bytes, lines, seq: None }))
}
