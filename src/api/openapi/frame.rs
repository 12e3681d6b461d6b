//! What the document says besides its calls: title, servers, ways to show who one is, areas, and the one
//! shape of a refusal.

use serde_json::{Map, Value, json};

use crate::domain::access::Permission;

const DESCRIPTION: &str = "\
Runs other people's servers in Docker containers on one machine.\n\n\
**Every protected call** wants two headers: `Authorization: Bearer lightd_…` (without a good one: 401) and an \
`Accept` that holds the media type `Application/vnd.pkglatv1+json`, anywhere in the list and in any case (else 403 \
`vendor`). WebSockets and event streams want the token alone, which may then stand in the address as `?token=`. \
What says `No authentication` wants neither.\n\n\
**A refusal** is always `{\"error\", \"code\"}`, and `problems` where fields are wrong: `code` is for programs, `error` \
for people. An address that is none is 404 `not_found`, a method that an address does not take 405 \
`method_not_allowed`, whoever asks. 429 and 503 carry `Retry-After`.\n\n\
**Every answer** carries `X-Request-Id`: the caller's own if it has at most 128 characters of `A-Z a-z 0-9 . _ -`, \
else a new one. It stands in lightd's log.\n\n\
**Sizes** are bytes unless a name says `_mb`, times seconds since 1970 in fields named `_at`, unless they say \
otherwise. Answers may get further fields in later versions.";

const TAGS: &[(&str, &str)] = &[
    ("public", "Whether lightd is there, and this document. No token."),
    ("tokens", "Tokens for others: narrowed, expiring, revocable."),
    ("containers", "Containers: made, listed, changed, deleted."),
    (
        "power",
        "Wishes about a container's life. They are answered when accepted, and may be repeated.",
    ),
    ("console", "What a container printed, a line for it, a process beside it."),
    ("resources", "What a container may use, and what it does use."),
    (
        "live",
        "What happens to a container, as it happens: a WebSocket, and the same as an event stream.",
    ),
    ("volumes", "Volumes: made, measured, resized, deleted."),
    ("snapshots", "Copies of volumes to go back to."),
    ("files", "Files and folders in a volume."),
    (
        "uploads",
        "Files that come in: forms, uploads that go on after a break (tus 1.0), pulls from elsewhere.",
    ),
    ("archives", "Archives in a volume, and folders as archives."),
    ("operations", "Work that goes on in the background."),
    ("network", "The pool of ports."),
    ("firewall", "Who reaches containers' published ports, and how often."),
    ("audit", "Who did what, and from where."),
    ("billing", "What containers have used, and what it comes to."),
    ("remote", "The configuration, the link to the panel, and the whole node in one answer."),
];

/// The document without calls.
pub(super) fn frame() -> Value {
    let tag =
        |&(name, description): &(&str, &str)| json!({"name": name, "description": description});
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "lightd",
            "description": DESCRIPTION,
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "The node that this document comes from"}],
        "security": [{"token": [], "vendor": []}],
        "tags": TAGS.iter().map(tag).collect::<Vec<_>>(),
        "paths": {},
        "components": {
            "schemas": refusal_schemas(), "responses": {}, "securitySchemes": security_schemes(),
        },
    })
}

fn security_schemes() -> Value {
    let permissions = Permission::NAMES.join("`, `");
    json!({
        "token": {
            "type": "http", "scheme": "bearer",
            "description": format!(
                "The node's own token (`lightd --token what`), or one that was issued. An issued one may be narrowed to \
                 containers and to permissions: `{permissions}`. A call wants any one of those that its `x-permissions` \
                 names (none there, and a token wanted: only the node's own may); what is not allowed is 403 `scope`."
            ),
        },
        "vendor": {
            "type": "apiKey", "in": "header", "name": "Accept",
            "description": "Must hold the media type `Application/vnd.pkglatv1+json`.",
        },
        "token_in_address": {
            "type": "apiKey", "in": "query", "name": "token",
            "description": "The token in the address, as a browser must for a WebSocket or an event stream.",
        },
    })
}

fn refusal_schemas() -> Value {
    json!({
        "Error": {
            "type": "object",
            "description": "Why something was refused.",
            "required": ["error", "code"],
            "properties": {
                "error": {
                    "type": "string", "description": "A sentence that a person can act on.",
                    "examples": ["no such container"],
                },
                "code": {
                    "type": "string", "description": "The same for programs; it does not change.",
                    "pattern": "^[a-z_]+$", "examples": ["not_found"],
                },
                "problems": {
                    "type": "array", "description": "Every field that is wrong, where fields are.",
                    "items": {"$ref": "#/components/schemas/Problem"},
                },
            },
        },
        "Problem": {
            "type": "object",
            "required": ["field", "message"],
            "properties": {
                "field": {
                    "type": "string",
                    "description": "As the caller wrote it: `ports[0].port`; `?limit` is a parameter of the address.",
                    "examples": ["image"],
                },
                "message": {"type": "string", "examples": ["is required"]},
                "code": {
                    "type": "string", "pattern": "^[a-z_]+$",
                    "description": "Of a trial: why what there is forbids it, though the field is well-formed.",
                    "examples": ["port_in_use"],
                },
            },
        },
    })
}

/// Adds the calls and schemas of a part.
pub(super) fn take_in(whole: &mut Value, mut part: Value) {
    for place in ["/components/schemas", "/components/responses", "/paths"] {
        let Some(Value::Object(more)) = part.pointer_mut(place).map(Value::take) else { continue };
        let all = whole.pointer_mut(place).and_then(Value::as_object_mut);
        merge(all.expect("invariant: the frame has this place"), more);
    }
}

/// One path may have calls in two parts.
fn merge(all: &mut Map<String, Value>, more: Map<String, Value>) {
    for (name, value) in more {
        match (all.get_mut(&name), value) {
            (Some(Value::Object(known)), Value::Object(value)) => known.extend(value),
            (_, value) => drop(all.insert(name, value)),
        }
    }
}
