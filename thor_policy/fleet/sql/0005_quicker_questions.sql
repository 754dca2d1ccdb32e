-- Similar decisions: vectors of half precision, and more links of each. A fleet meets the same situation again and
-- again, and groups of near-equal vectors that are larger than the links of each fall apart from the rest of the graph.
-- The question sorts what the index gives by the exact distance.
--
-- On a store with many vectors, give this migration memory: PGOPTIONS='-c maintenance_work_mem=3GB' thorpolicy fleet init
DROP INDEX summaries_embedding;
CREATE INDEX summaries_embedding ON summaries USING hnsw ((embedding::halfvec(384)) halfvec_cosine_ops)
    WITH (m = 32, ef_construction = 128);

-- Exceptions: approvals of the decision and of its task are never the same row, so none has to be compared.
CREATE OR REPLACE VIEW approved_exceptions AS
SELECT d.device, d.decision_id, d.timestamp, d.decision_type, d.actor, d.action, d.entity, d.decision, d.lifted,
    d.prompt_version AS policy_version, a.approver, a.role, a.roles, a.channel, a.step, a.evidence,
    a.timestamp AS approved_at, s.status IS NOT NULL AS overturned, s.timestamp AS overturned_at,
    s.by AS overturned_by, s.because AS overturned_because
FROM counted d
CROSS JOIN LATERAL (
    SELECT * FROM approvals a WHERE a.journal = d.journal AND a.decision_id = d.decision_id AND a.verdict = 'approved'
    UNION ALL
    SELECT * FROM approvals a WHERE a.journal = d.journal AND a.task = d.approval_task AND a.verdict = 'approved'
        AND a.decision_id <> d.decision_id
) a
LEFT JOIN LATERAL (
    SELECT * FROM trace_states t WHERE t.journal = d.journal AND t.decision_id = d.decision_id
        AND t.status = 'overturned' ORDER BY t.seq DESC LIMIT 1
) s ON true
WHERE d.is_exception;
CREATE INDEX trace_states_overturned ON trace_states (journal, decision_id, seq) WHERE status = 'overturned';
