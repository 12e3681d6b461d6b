-- The audit log is asked for one actor, one action or one token's beginning as well; what there is little of is
-- found without a walk through the whole log.
CREATE INDEX audit_by_actor ON audit (actor);
CREATE INDEX audit_by_action ON audit (action);
CREATE INDEX audit_by_prefix ON audit (token_prefix) WHERE token_prefix IS NOT NULL;
