-- The firewall of a container; no row, no firewall.
CREATE TABLE firewalls (
    -- Names its chain in the kernel, so it is never given twice.
    number    INTEGER PRIMARY KEY AUTOINCREMENT,
    container TEXT NOT NULL UNIQUE REFERENCES containers (id) ON DELETE CASCADE,
    -- Whether its rules are to be in the kernel.
    attached  INTEGER NOT NULL,
    ddos_json TEXT
) STRICT;

CREATE TABLE firewall_rules (
    -- The order in which rules are matched.
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    firewall   INTEGER NOT NULL REFERENCES firewalls (number) ON DELETE CASCADE,
    enabled    INTEGER NOT NULL,
    rule_json  TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE INDEX firewall_rules_by_firewall ON firewall_rules (firewall, number);
