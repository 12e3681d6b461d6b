//! What lets a panel know that an update is from its node, unchanged and of now: an HMAC-SHA256 over the
//! moment of sending and the body, with a secret that both know.
//!
//! Made anew for each attempt, so that the moment is the attempt's; a receiver may refuse old ones.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::domain::units::UnixSeconds;
use crate::util::secret::Secret;

pub(super) const HEADER: &str = "X-Lightd-Signature";

/// `t=<Unix seconds>,v1=<hexadecimal HMAC of "<t>.<body>">`.
pub(super) fn signature(secret: &Secret, at: UnixSeconds, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes())
        .expect("invariant: HMAC takes a key of any length");
    mac.update(at.0.to_string().as_bytes());
    mac.update(b".");
    mac.update(body.as_bytes());
    format!("t={},v1={}", at.0, hex::encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected value is what Python's `hmac` makes of it.
    #[test]
    fn a_signature_is_what_others_compute() {
        let secret = Secret::new("whsec_0123456789abcdef");
        let body = r#"{"event":"update","server":"a","status":"ready"}"#;
        let expected =
            "t=1800000000,v1=0d93f76b36259e5bcc91bdcf9ddd41382d90c6e2505aa3576e049c4cbb4460f2";
        assert_eq!(signature(&secret, UnixSeconds(1_800_000_000), body), expected);
        assert_ne!(signature(&secret, UnixSeconds(1_800_000_001), body), expected);
    }
}
