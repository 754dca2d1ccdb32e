-- What people ask of a fleet. Claims, tests and traces in quarantine count in no figure, as on the device.

CREATE VIEW counted AS
SELECT j.device, d.* FROM decisions d JOIN journals j USING (journal)
WHERE d.claimed IS DISTINCT FROM 'report' AND d.lacks IS NULL AND d.scenario_id IS NULL
    AND d.tags ->> 0 IS DISTINCT FROM 'invariance';

-- Statistics of each agent since a time.
CREATE FUNCTION agent_statistics(since timestamptz) RETURNS TABLE (
    actor text, total bigint, successful bigint, failed bigint, pending bigint, success_rate double precision,
    average_value double precision, total_value double precision, average_latency_ms double precision,
    input_tokens numeric, output_tokens numeric, average_confidence double precision, devices bigint
) LANGUAGE sql STABLE SET search_path = thorpolicy, pg_temp AS $$
    SELECT c.actor, count(*), count(*) FILTER (WHERE c.outcome_status = 'SUCCESS'),
        count(*) FILTER (WHERE c.outcome_status = 'FAILURE'),
        count(*) FILTER (WHERE c.outcome_status IS NULL OR c.outcome_status = 'PENDING'),
        avg((c.outcome_status = 'SUCCESS')::int) FILTER (WHERE c.outcome_status IN ('SUCCESS', 'FAILURE')),
        avg(c.outcome_value), sum(c.outcome_value), avg(c.latency_ms), sum(c.input_tokens), sum(c.output_tokens),
        avg(c.confidence), count(DISTINCT c.device)
    FROM counted c WHERE c.timestamp >= since AND c.actor IS NOT NULL GROUP BY c.actor ORDER BY 2 DESC
$$;

-- What worked: decisions with a good outcome, newest first.
CREATE VIEW successes AS
SELECT device, decision_id, timestamp, actor, decision_type, action, entity, decision, outcome_value, confidence
FROM counted WHERE outcome_status = 'SUCCESS' ORDER BY timestamp DESC;

CREATE VIEW volume_by_agent AS
SELECT date_trunc('hour', timestamp) AS hour, device, actor, count(*) AS decisions
FROM counted GROUP BY 1, 2, 3;

CREATE VIEW success_rates AS
SELECT device, actor, model_name, count(*) AS judged, avg((outcome_status = 'SUCCESS')::int) AS success_rate
FROM counted WHERE outcome_status IN ('SUCCESS', 'FAILURE') GROUP BY 1, 2, 3;

CREATE VIEW latency_by_model AS
SELECT model_name, model_version, tier, count(*) AS decisions,
    percentile_cont(ARRAY[0.5, 0.9, 0.99]) WITHIN GROUP (ORDER BY latency_ms) AS p50_p90_p99_ms
FROM counted WHERE latency_ms IS NOT NULL GROUP BY 1, 2, 3;

CREATE VIEW confidence_and_outcome AS
SELECT width_bucket(confidence, 0, 1, 10) AS tenth, count(*) AS decisions,
    count(*) FILTER (WHERE outcome_status IN ('SUCCESS', 'FAILURE')) AS judged,
    avg((outcome_status = 'SUCCESS')::int) FILTER (WHERE outcome_status IN ('SUCCESS', 'FAILURE')) AS success_rate
FROM counted WHERE confidence IS NOT NULL GROUP BY 1;

-- Each exception that somebody approved: policy version, approver and role at the time, and what became of it.
CREATE VIEW approved_exceptions AS
SELECT d.device, d.decision_id, d.timestamp, d.decision_type, d.actor, d.action, d.entity, d.decision, d.lifted,
    d.prompt_version AS policy_version, a.approver, a.role, a.roles, a.channel, a.step, a.evidence,
    a.timestamp AS approved_at, s.status IS NOT NULL AS overturned, s.timestamp AS overturned_at,
    s.by AS overturned_by, s.because AS overturned_because
FROM counted d
CROSS JOIN LATERAL (
    SELECT * FROM approvals a WHERE a.journal = d.journal AND a.decision_id = d.decision_id AND a.verdict = 'approved'
    UNION
    SELECT * FROM approvals a WHERE a.journal = d.journal AND a.task = d.approval_task AND a.verdict = 'approved'
) a
LEFT JOIN LATERAL (
    SELECT * FROM trace_states t WHERE t.journal = d.journal AND t.decision_id = d.decision_id
        AND t.status = 'overturned' ORDER BY t.seq DESC LIMIT 1
) s ON true
WHERE d.is_exception;

-- Which decisions rest on which earlier ones, across devices.
CREATE VIEW precedents AS
SELECT j.device, e.source AS decision_id, e.target AS precedent_id, p.device AS precedent_device,
    p.decision AS precedent_decision, p.outcome_status AS precedent_outcome, p.trace_status AS precedent_status,
    e.similarity, e.how, e.timestamp
FROM edges e JOIN journals j USING (journal)
LEFT JOIN (SELECT jj.device, d.* FROM decisions d JOIN journals jj USING (journal)) p ON p.decision_id = e.target
WHERE e.type = 'CITES';
CREATE INDEX decisions_id ON decisions (decision_id);

-- How far each device is, and its alarms.
CREATE VIEW fleet AS
SELECT j.device, encode(j.chain, 'hex') AS chain, j.seq AS events, j.newest_at, j.first_seen, j.last_seen,
    extract(epoch FROM now() - j.last_seen) AS silent_s,
    (SELECT max(c.seq) FROM checkpoints c WHERE c.journal = j.journal) AS signed,
    (SELECT count(*) FROM alarms a WHERE a.device = j.device) AS alarms
FROM journals j;
