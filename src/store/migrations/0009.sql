-- When the first waiting update of a server is due, in milliseconds; NULL while none waits. So what is due
-- is found without a look at what waits behind it.
ALTER TABLE outbox_servers ADD COLUMN due_ms INTEGER;
UPDATE outbox_servers SET due_ms = 0 WHERE EXISTS (
    SELECT 1 FROM outbox WHERE outbox.server = outbox_servers.server AND parked_reason IS NULL);
-- The panel has asked for this pause: it is kept when it is found well again.
ALTER TABLE outbox_servers ADD COLUMN is_asked INTEGER NOT NULL DEFAULT 0;
CREATE INDEX outbox_due ON outbox_servers (due_ms) WHERE due_ms IS NOT NULL;

ALTER TABLE outbox DROP COLUMN next_attempt_at;
-- Why the latest attempt failed, and when the panel refused for good.
ALTER TABLE outbox ADD COLUMN last_error TEXT;
ALTER TABLE outbox ADD COLUMN parked_at INTEGER;
-- Parked power states may be thinned out; parked results may not.
CREATE INDEX outbox_parked_power ON outbox (sequence)
    WHERE parked_reason IS NOT NULL AND kind = 'power';
