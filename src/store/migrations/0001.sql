-- Facts about the node itself.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE volumes (
    id         TEXT PRIMARY KEY,
    name       TEXT,
    size_bytes INTEGER,
    created_at INTEGER NOT NULL
) STRICT;

-- Folders that no volume stands for: not yet, or not any more. What a crash leaves here is removed.
CREATE TABLE volume_folders_to_remove (
    id TEXT PRIMARY KEY
) STRICT;

CREATE TABLE containers (
    id                   TEXT PRIMARY KEY,
    spec_json            TEXT NOT NULL,
    registry_auth_sealed BLOB,
    volume_id            TEXT NOT NULL REFERENCES volumes (id),
    -- The supervisor's own record; what follows it repeats what lists filter by and answers show.
    state_json           TEXT NOT NULL,
    phase                TEXT NOT NULL,
    run                  INTEGER NOT NULL,
    docker_id            TEXT,
    own_image            TEXT,
    install_state        TEXT NOT NULL,
    install_error        TEXT,
    exit_code            INTEGER,
    oom_killed           INTEGER NOT NULL,
    started_at           INTEGER,
    created_at           INTEGER NOT NULL,
    updated_at           INTEGER NOT NULL
) STRICT;
CREATE INDEX containers_by_volume ON containers (volume_id);

-- The pool. A container's ports are columns here and not rows elsewhere, so that one port cannot have
-- two holders.
CREATE TABLE ports (
    ip             TEXT NOT NULL,
    port           INTEGER NOT NULL CHECK (port BETWEEN 1 AND 65535),
    protocol       TEXT NOT NULL CHECK (protocol IN ('tcp', 'udp')),
    marked_in_use  INTEGER NOT NULL DEFAULT 0,
    container      TEXT REFERENCES containers (id),
    container_port INTEGER,
    -- Place in the container's list; NULL while the port is only kept for the container, in case a
    -- rebind has to be undone.
    position       INTEGER,
    lease_id       TEXT,
    lease_until    INTEGER,
    PRIMARY KEY (port, protocol, ip)
) STRICT, WITHOUT ROWID;
CREATE INDEX ports_by_container ON ports (container) WHERE container IS NOT NULL;

CREATE TABLE tokens (
    id            TEXT PRIMARY KEY,
    hash          BLOB NOT NULL UNIQUE,
    prefix        TEXT NOT NULL,
    scope_json    TEXT NOT NULL,
    remove_on_use INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    expires_at    INTEGER NOT NULL,
    last_used_at  INTEGER
) STRICT;
CREATE INDEX tokens_by_expiry ON tokens (expires_at);

CREATE TABLE outbox (
    sequence        INTEGER PRIMARY KEY AUTOINCREMENT,
    delivery        TEXT NOT NULL,
    server          TEXT NOT NULL,
    server_sequence INTEGER NOT NULL,
    -- Power states may be thinned out during a long outage of the panel; results may not.
    kind            TEXT NOT NULL CHECK (kind IN ('result', 'power')),
    body_json       TEXT NOT NULL,
    created_at      INTEGER NOT NULL,
    attempts        INTEGER NOT NULL DEFAULT 0,
    next_attempt_at INTEGER NOT NULL DEFAULT 0,
    parked_reason   TEXT
) STRICT;
CREATE INDEX outbox_waiting ON outbox (server, sequence) WHERE parked_reason IS NULL;
CREATE INDEX outbox_parked ON outbox (sequence) WHERE parked_reason IS NOT NULL;

-- The last number given per server; outlives the rows and the server, so that none is given twice.
CREATE TABLE outbox_servers (
    server        TEXT PRIMARY KEY,
    last_sequence INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
