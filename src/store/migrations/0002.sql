-- Long work on volumes, so that it is known after a crash that it was interrupted.
CREATE TABLE operations (
    id          TEXT PRIMARY KEY,
    is_running  INTEGER NOT NULL,
    finished_at INTEGER,
    view_json   TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- What was answered to a request with an Idempotency-Key. Without an answer the request was begun, and
-- what became of it is not known.
CREATE TABLE idempotency_keys (
    principal     TEXT NOT NULL,
    key           TEXT NOT NULL,
    fingerprint   BLOB NOT NULL,
    begun_at      INTEGER NOT NULL,
    status        INTEGER,
    -- Encrypted: an issued token stands in its answer.
    answer_sealed BLOB,
    PRIMARY KEY (principal, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (begun_at);
