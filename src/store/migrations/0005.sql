-- Leases have a life of their own, a released port may rest before it is handed out again, and a free
-- port is found by an index, whatever the size of the pool.
CREATE TABLE port_leases (
    id         TEXT PRIMARY KEY,
    -- Who was handed the ports, and may use them without showing the id.
    holder     TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX port_leases_by_expiry ON port_leases (expires_at);

INSERT INTO port_leases (id, holder, created_at, expires_at)
    SELECT lease_id, '', max(lease_until), max(lease_until) FROM ports
    WHERE lease_id IS NOT NULL AND lease_until IS NOT NULL GROUP BY lease_id;

-- The order of the key is that of lists.
CREATE TABLE ports_anew (
    ip                TEXT NOT NULL,
    port              INTEGER NOT NULL CHECK (port BETWEEN 1 AND 65535),
    protocol          TEXT NOT NULL CHECK (protocol IN ('tcp', 'udp')),
    marked_in_use     INTEGER NOT NULL DEFAULT 0,
    -- What the mark is for.
    note              TEXT,
    container         TEXT REFERENCES containers (id),
    container_port    INTEGER,
    -- Place in the container's list; NULL while the port is only kept for the container, in case a
    -- rebind has to be undone.
    position          INTEGER,
    lease_id          TEXT REFERENCES port_leases (id) ON DELETE SET NULL,
    quarantined_until INTEGER,
    -- The container whose end, or rebind, began the quarantine.
    released_by       TEXT,
    -- A place in no order, so that what is chosen from the index of free ports is any of them.
    shuffle           INTEGER NOT NULL DEFAULT (random()),
    PRIMARY KEY (ip, port, protocol)
) STRICT, WITHOUT ROWID;

INSERT INTO ports_anew (ip, port, protocol, marked_in_use, container, container_port, position, lease_id)
    SELECT ip, port, protocol, marked_in_use, container, container_port, position,
        CASE WHEN lease_until IS NOT NULL THEN lease_id END FROM ports;
DROP TABLE ports;
ALTER TABLE ports_anew RENAME TO ports;

CREATE INDEX ports_by_number ON ports (port, protocol);
CREATE INDEX ports_by_container ON ports (container) WHERE container IS NOT NULL;
CREATE INDEX ports_by_lease ON ports (lease_id) WHERE lease_id IS NOT NULL;
CREATE INDEX ports_by_quarantine ON ports (quarantined_until) WHERE quarantined_until IS NOT NULL;
-- What the condition names stands in them too: otherwise each entry would be looked up to see it.
CREATE INDEX ports_free ON ports
    (protocol, shuffle, marked_in_use, container, lease_id, quarantined_until)
    WHERE marked_in_use = 0 AND container IS NULL AND lease_id IS NULL AND quarantined_until IS NULL;
CREATE INDEX ports_free_of_ip ON ports
    (protocol, ip, shuffle, marked_in_use, container, lease_id, quarantined_until)
    WHERE marked_in_use = 0 AND container IS NULL AND lease_id IS NULL AND quarantined_until IS NULL;
CREATE INDEX ports_free_in_order ON ports
    (protocol, ip, port, marked_in_use, container, lease_id, quarantined_until)
    WHERE marked_in_use = 0 AND container IS NULL AND lease_id IS NULL AND quarantined_until IS NULL;
