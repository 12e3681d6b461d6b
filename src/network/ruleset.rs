//! Whether anybody changes the kernel's rules: a look at the number that it gives each state of them.
//!
//! A look costs some microseconds, so one is taken every two seconds; whoever keeps rules is told when
//! the number is another one than before, and only then compares what stands with what should. Where the
//! kernel does not tell the number, the comparison is made each minute instead.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::util::chain::Chain;

const LOOK_EVERY: Duration = Duration::from_secs(2);
const BLIND_EVERY: Duration = Duration::from_secs(60);

/// Counts the times at which the rules were found changed, by anybody.
pub(crate) async fn watch(changes: watch::Sender<u64>, stop: CancellationToken) {
    let mut last = None;
    let mut is_blind = false;
    loop {
        match generation() {
            Ok(now) => {
                if last.is_some_and(|last| last != now) {
                    changes.send_modify(|count| *count += 1);
                }
                last = Some(now);
            }
            Err(error) => {
                if !is_blind {
                    tracing::warn!(error = %Chain(&error), "the kernel does not tell when its rules change; they are compared each minute");
                }
                is_blind = true;
                changes.send_modify(|count| *count += 1);
            }
        }
        let pause = if is_blind { BLIND_EVERY } else { LOOK_EVERY };
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN`, and the answer to it.
const GET_GENERATION: u16 = 10 << 8 | 16;
const NEW_GENERATION: u16 = 10 << 8 | 15;
const REQUEST: u16 = 1;
const HEADER_BYTES: usize = 16;
/// The family, the version and a number that nobody uses.
const PREFIX_BYTES: usize = 4;
const GENERATION_ID: u16 = 1;

/// The number of the present state. Another network namespace has numbers of its own.
fn generation() -> io::Result<u32> {
    let socket: OwnedFd = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(netlink::NETFILTER),
    )?;
    rustix::net::sendto(&socket, &request(), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0; 512];
    // The kernel answers while it takes the request.
    let (bytes, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    parse(&answer[..bytes]).ok_or_else(|| io::Error::other("not an answer to what was asked"))
}

fn request() -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER_BYTES + PREFIX_BYTES);
    message.extend(20_u32.to_ne_bytes());
    message.extend(GET_GENERATION.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    // Sequence number, port, and the prefix.
    message.extend([0; 4 + 4 + PREFIX_BYTES]);
    message
}

fn parse(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    if kind != NEW_GENERATION {
        return None;
    }
    let mut rest = answer.get(HEADER_BYTES + PREFIX_BYTES..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let name = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        if name == GENERATION_ID {
            return Some(u32::from_be_bytes(rest.get(4..8)?.try_into().ok()?));
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_read_from_the_kernels_answer() {
        let answer = "300000000f0a0000070000004266000000006c560800010000036c56\
                      08000200000066420c000300707974686f6e3300";
        let answer = hex::decode(answer).unwrap();
        assert_eq!(parse(&answer), Some(0x0003_6c56));
        for end in 0..28 {
            assert_eq!(parse(&answer[..end]), None, "cut off after {end}");
        }
        // An error is no answer.
        let mut error = answer;
        error[4..6].copy_from_slice(&2_u16.to_ne_bytes());
        assert_eq!(parse(&error), None);
    }

    #[test]
    fn the_number_changes_with_the_rules() {
        let name = format!("lt0{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let nft = |verb: &str| {
            let done =
                std::process::Command::new("nft").args([verb, "table", "inet", &name]).status();
            assert!(done.is_ok_and(|status| status.success()), "nft {verb}");
        };
        let before = generation().unwrap();
        nft("add");
        let with_a_table = generation().unwrap();
        nft("delete");
        assert_ne!(before, with_a_table);
    }
}
