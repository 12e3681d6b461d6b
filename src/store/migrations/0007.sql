-- Who did what, from where. Rows outlive what they are about, so none of it refers to another table.
CREATE TABLE audit (
    -- Grows, and no number is given twice: a page goes on below the last one's.
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    created_at   INTEGER NOT NULL,
    -- What was done again shortly after is counted on the same row.
    last_at      INTEGER NOT NULL,
    count        INTEGER NOT NULL,
    action       TEXT NOT NULL,
    actor        TEXT NOT NULL CHECK (actor IN ('lightd', 'node', 'token', 'anonymous')),
    token_id     TEXT,
    token_prefix TEXT,
    way          TEXT NOT NULL CHECK (way IN ('rest', 'websocket', 'cli', 'lightd')),
    address      TEXT,
    request_id   TEXT,
    container    TEXT,
    volume       TEXT,
    details_json TEXT NOT NULL
) STRICT;
CREATE INDEX audit_by_container ON audit (container) WHERE container IS NOT NULL;
CREATE INDEX audit_by_volume ON audit (volume) WHERE volume IS NOT NULL;
CREATE INDEX audit_by_token ON audit (token_id) WHERE token_id IS NOT NULL;
CREATE INDEX audit_by_time ON audit (last_at);
