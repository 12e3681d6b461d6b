-- Where a token comes from and goes.
ALTER TABLE tokens ADD COLUMN issued_by TEXT NOT NULL DEFAULT 'node';
ALTER TABLE tokens ADD COLUMN issued_from TEXT;
ALTER TABLE tokens ADD COLUMN last_used_from TEXT;
CREATE INDEX tokens_by_age ON tokens (created_at, id);

-- The containers that a token's scope names, so that it ends with them.
CREATE TABLE token_containers (
    container TEXT NOT NULL,
    token     TEXT NOT NULL REFERENCES tokens (id) ON DELETE CASCADE,
    PRIMARY KEY (container, token)
) STRICT, WITHOUT ROWID;
CREATE INDEX token_containers_by_token ON token_containers (token);
INSERT OR IGNORE INTO token_containers (container, token)
    SELECT each.value, tokens.id FROM tokens, json_each(tokens.scope_json, '$.containers') AS each;

-- Where the node's token was good from lately: an address, or a /64 of IPv6.
CREATE TABLE homes (
    network TEXT PRIMARY KEY,
    seen_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
