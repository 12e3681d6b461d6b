//! A registry's credentials at rest: sealed with the node's key, bound to their container.

use serde::{Deserialize, Serialize};

use crate::domain::ids::ContainerId;
use crate::engine::RegistryAuth;
use crate::util::secret::{SealError, Sealer};

#[derive(Serialize, Deserialize)]
struct Plain {
    username: String,
    password: String,
    server: Option<String>,
}

/// Blocking: reads the key file.
pub(super) fn seal(
    sealer: &Sealer,
    of: &ContainerId,
    auth: RegistryAuth,
) -> Result<Vec<u8>, SealError> {
    let RegistryAuth { username, password, server } = auth;
    let text = serde_json::to_vec(&Plain { username, password, server })
        .expect("invariant: a struct of texts is always JSON");
    sealer.seal(&context(of), &text)
}

/// Blocking: reads the key file. `Ok(None)` if what was sealed is not what [`seal`] writes.
pub(super) fn open(
    sealer: &Sealer,
    of: &ContainerId,
    sealed: &[u8],
) -> Result<Option<RegistryAuth>, SealError> {
    let text = sealer.open(&context(of), sealed)?;
    let plain: Option<Plain> = serde_json::from_slice(&text).ok();
    Ok(plain.map(|Plain { username, password, server }| RegistryAuth {
        username,
        password,
        server,
    }))
}

fn context(of: &ContainerId) -> Vec<u8> {
    format!("{of}/registry_auth").into_bytes()
}
