-- What holds a volume to its size. Until now lightd itself did.
ALTER TABLE volumes ADD COLUMN backend TEXT CHECK (backend IN ('soft', 'image', 'project'));
ALTER TABLE volumes ADD COLUMN project INTEGER;
UPDATE volumes SET backend = 'soft' WHERE size_bytes IS NOT NULL;
CREATE UNIQUE INDEX volumes_by_project ON volumes (project) WHERE project IS NOT NULL;

-- Complete copies of volumes, and those on their way in or out.
CREATE TABLE volume_snapshots (
    id         TEXT PRIMARY KEY,
    volume_id  TEXT NOT NULL REFERENCES volumes (id) ON DELETE CASCADE,
    name       TEXT NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('making', 'ready', 'removing')),
    bytes      INTEGER NOT NULL,
    entries    INTEGER NOT NULL,
    paused     INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (volume_id, name)
) STRICT;
