-- What containers have used, by hours and by days of UTC. The rows outlive their container, and go with
-- their age.
CREATE TABLE usage (
    container     TEXT NOT NULL,
    step          TEXT NOT NULL CHECK (step IN ('hour', 'day')),
    -- When the hour or the day began.
    at            INTEGER NOT NULL,
    run_ms        INTEGER NOT NULL,
    cpu_us        INTEGER NOT NULL,
    memory_kib_s  INTEGER NOT NULL,
    reserved_kib_s INTEGER NOT NULL,
    storage_kib_s INTEGER NOT NULL,
    egress_bytes  INTEGER NOT NULL,
    ingress_bytes INTEGER NOT NULL,
    PRIMARY KEY (container, step, at)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_by_time ON usage (step, at);

-- Where the counters of a run stood when its usage was last stored.
CREATE TABLE usage_positions (
    container   TEXT PRIMARY KEY REFERENCES containers (id) ON DELETE CASCADE,
    run         INTEGER NOT NULL,
    -- Milliseconds since the host's start.
    at_ms       INTEGER NOT NULL,
    cpu_ns      INTEGER NOT NULL,
    network_rx  INTEGER NOT NULL,
    network_tx  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Runs that began before are not counted from their beginning.
INSERT INTO meta (key, value) VALUES ('usage_since', strftime('%s', 'now'));
