-- What a device may do: ask how far the store is, and hand over events, which the store itself verifies.
--
-- A role that ships has no right on any table. These functions run with the rights of the store's owner, and take
-- events only for a device that belongs to the role of the session. They insert, and never overwrite: the one thing
-- that is deleted is a private part that an `erased` event of the same journal names.

CREATE FUNCTION make_partition(of_time timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = thorpolicy, pg_temp AS $$
DECLARE
    first timestamptz := date_trunc('month', of_time, 'UTC');
    name text := 'events_' || to_char(first AT TIME ZONE 'UTC', 'YYYYMM');
BEGIN
    IF to_regclass('thorpolicy.' || name) IS NULL THEN
        PERFORM pg_advisory_xact_lock(hashtext('thorpolicy.make_partition'));
        EXECUTE format('CREATE TABLE IF NOT EXISTS %I PARTITION OF events FOR VALUES FROM (%L) TO (%L)',
                       name, first, date_trunc('month', first + interval '32 days', 'UTC'));
    END IF;
END $$;

-- An alarm is stored once, and then counted. A device can leave at most 1,000.
CREATE FUNCTION raise_alarm(of_device text, of_chain bytea, of_kind text, at_seq bigint, had bytea, got bytea)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = thorpolicy, pg_temp AS $$
BEGIN
    UPDATE alarms SET times = times + 1 WHERE device = of_device AND chain = of_chain AND kind = of_kind
        AND seq = at_seq AND received IS NOT DISTINCT FROM got;
    IF NOT FOUND THEN
        INSERT INTO alarms (device, chain, kind, seq, stored, received)
        SELECT of_device, of_chain, of_kind, at_seq, had, got FROM devices d
        WHERE d.device = of_device AND d.alarms < 1000;
        UPDATE devices SET alarms = alarms + 1 WHERE device = of_device AND alarms < 1000;
    END IF;
END $$;

-- The device's row, locked; it is made at the first contact, and belongs to the role of that session.
CREATE FUNCTION own_device(of_device text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = thorpolicy, pg_temp AS $$
DECLARE owner name;
BEGIN
    INSERT INTO devices (device, role) VALUES (of_device, session_user) ON CONFLICT DO NOTHING;
    UPDATE devices SET last_seen = now() WHERE device = of_device RETURNING role INTO owner;
    IF owner <> session_user THEN
        RAISE EXCEPTION 'the device % ships as another role', of_device USING ERRCODE = 'insufficient_privilege',
            HINT = 'Give each device a name of its own, or let the owner change devices.role.';
    END IF;
END $$;

CREATE FUNCTION position_of(of_device text, of_chain bytea, OUT seq bigint, OUT head bytea, OUT signed bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = thorpolicy, pg_temp AS $$
BEGIN
    PERFORM own_device(of_device);
    SELECT j.seq, j.head, coalesce((SELECT max(c.seq) FROM checkpoints c WHERE c.journal = j.journal), 0)
    INTO seq, head, signed FROM journals j WHERE j.device = of_device AND j.chain = of_chain;
    IF NOT FOUND THEN
        seq := 0; head := decode(repeat('00', 32), 'hex'); signed := 0;
    END IF;
END $$;

-- A device reports that it has fewer events than it shipped, or another event with a number that it shipped.
CREATE FUNCTION report(of_device text, of_chain bytea, of_kind text, at_seq bigint, got bytea) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = thorpolicy, pg_temp AS $$
BEGIN
    PERFORM own_device(of_device);
    IF of_kind NOT IN ('fork', 'rolled_back') THEN
        RAISE EXCEPTION 'a device cannot report %', of_kind;
    END IF;
    PERFORM raise_alarm(of_device, of_chain, of_kind, at_seq,
        (SELECT e.hash FROM events e JOIN journals j USING (journal)
         WHERE j.device = of_device AND j.chain = of_chain AND e.seq = at_seq), got);
END $$;

-- Hand over events in order. `status` is `ok`, or why nothing was taken: `gap` (send the events after `seq`), `fork`
-- or `broken` (an alarm was stored). `seq` and `head` are how far the store is. Events that the store has are compared,
-- not stored again.
CREATE FUNCTION receive(
    of_device text, of_chain bytea,
    seqs bigint[], ats bytea[], boots bytea[], monos bigint[], kinds bytea[], subjects bytea[], bodies bytea[],
    digests bytea[], prevs bytea[], hashes bytea[], salts bytea[], parts bytea[],
    projected jsonb,
    OUT status text, OUT seq bigint, OUT head bytea
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = thorpolicy, pg_temp AS $$
DECLARE
    j journals%ROWTYPE;
    n integer := cardinality(seqs);
    bad record;
    skip integer;
    received timestamptz := clock_timestamp();
BEGIN
    PERFORM own_device(of_device);
    SELECT * INTO j FROM journals WHERE device = of_device AND chain = of_chain FOR UPDATE;
    IF NOT FOUND THEN
        seq := 0; head := decode(repeat('00', 32), 'hex');
        IF n = 0 OR seqs[1] <> 1 THEN
            status := 'gap';
            RETURN;
        END IF;
        IF hashes[1] <> of_chain THEN
            PERFORM raise_alarm(of_device, of_chain, 'broken', 1, of_chain, hashes[1]);
            status := 'broken';
            RETURN;
        END IF;
        IF kinds[1] <> 'gap' AND EXISTS (SELECT 1 FROM journals WHERE device = of_device) THEN
            PERFORM raise_alarm(of_device, of_chain, 'new_journal', 1, NULL, hashes[1]);
        END IF;
        INSERT INTO journals (device, chain) VALUES (of_device, of_chain) RETURNING * INTO j;
    END IF;
    seq := j.seq; head := j.head;
    IF n = 0 THEN
        status := 'ok';
        RETURN;
    END IF;

    -- what the store has already must be the same
    SELECT u.seq, e.hash AS had, u.hash AS got INTO bad
    FROM unnest(seqs, hashes) AS u(seq, hash) JOIN events e ON e.journal = j.journal AND e.seq = u.seq
    WHERE u.seq <= j.seq AND e.hash <> u.hash ORDER BY u.seq LIMIT 1;
    IF FOUND THEN
        PERFORM raise_alarm(of_device, of_chain, 'fork', bad.seq, bad.had, bad.got);
        status := 'fork';
        RETURN;
    END IF;
    skip := greatest(0, j.seq - seqs[1] + 1);
    IF skip >= n THEN
        status := 'ok';
        RETURN;
    END IF;
    IF seqs[skip + 1] <> j.seq + 1 THEN
        status := 'gap';
        RETURN;
    END IF;
    IF prevs[skip + 1] <> j.head THEN
        PERFORM raise_alarm(of_device, of_chain, 'fork', j.seq, j.head, prevs[skip + 1]);
        status := 'fork';
        RETURN;
    END IF;

    -- the chain, from the stored bytes, as `journal.chain.hash_of` computes it
    SELECT u.seq, u.computed AS had, u.hash AS got INTO bad FROM (
        SELECT v.*, sha256(
            v.prev || int8send(v.seq) || int8send(v.mono) || int4send(octet_length(v.at))
            || int4send(octet_length(v.boot)) || int4send(octet_length(v.kind)) || int4send(octet_length(v.subject))
            || int4send(octet_length(v.body)) || int4send(octet_length(v.digest))
            || v.at || v.boot || v.kind || v.subject || v.body || v.digest) AS computed,
            lag(v.hash, 1, j.head) OVER (ORDER BY v.ord) AS before
        FROM unnest(seqs, ats, boots, monos, kinds, subjects, bodies, digests, prevs, hashes, salts, parts)
            WITH ORDINALITY AS v(seq, at, boot, mono, kind, subject, body, digest, prev, hash, salt, part, ord)
        WHERE v.ord > skip
    ) u WHERE u.seq <> j.seq + u.ord - skip OR u.prev <> u.before OR u.hash <> u.computed
        OR (u.part IS NOT NULL AND sha256(u.salt || u.part) <> u.digest)
    ORDER BY u.ord LIMIT 1;
    IF FOUND THEN
        PERFORM raise_alarm(of_device, of_chain, 'broken', bad.seq, bad.had, bad.got);
        status := 'broken';
        RETURN;
    END IF;

    PERFORM make_partition(received);
    INSERT INTO events
    SELECT j.journal, v.seq, received, convert_from(v.at, 'UTF8'), convert_from(v.boot, 'UTF8'), v.mono,
        convert_from(v.kind, 'UTF8'), v.subject, v.body, v.digest, v.prev, v.hash
    FROM unnest(seqs, ats, boots, monos, kinds, subjects, bodies, digests, prevs, hashes)
        AS v(seq, at, boot, mono, kind, subject, body, digest, prev, hash)
    WHERE v.seq > j.seq;
    INSERT INTO private
    SELECT j.journal, v.seq, v.salt, v.part FROM unnest(seqs, salts, parts) AS v(seq, salt, part)
    WHERE v.seq > j.seq AND v.part IS NOT NULL;
    BEGIN
        PERFORM store_rows(j.journal, j.seq, seqs[n], projected);
    EXCEPTION WHEN data_exception OR integrity_constraint_violation THEN
        INSERT INTO without_rows VALUES (j.journal, j.seq + 1, seqs[n], left(SQLERRM, 500));
    END;
    PERFORM apply_erasures(j.journal, j.seq, seqs[n], projected);
    UPDATE journals SET seq = seqs[n], head = hashes[n], newest_at = convert_from(ats[n], 'UTF8'),
        last_seen = received WHERE journal = j.journal;
    status := 'ok'; seq := seqs[n]; head := hashes[n];
END $$;

-- The rows of the tables that people query, of the events after `low` up to `high`, and what these events change in
-- earlier decisions. Anything else in `projected` is ignored: a device can state rows of its own new events only.
CREATE FUNCTION store_rows(of_journal integer, low bigint, high bigint, projected jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = thorpolicy, pg_temp AS $$
DECLARE
    name text;
    list text;
BEGIN
    FOREACH name IN ARRAY ARRAY['decisions', 'reviews', 'outcomes', 'approvals', 'trace_states', 'edges'] LOOP
        IF projected ? name THEN
            SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) INTO list FROM pg_attribute
            WHERE attrelid = name::regclass AND attnum > 1 AND NOT attisdropped;
            EXECUTE format(
                'INSERT INTO %1$I (journal, %2$s) SELECT $2, %2$s FROM jsonb_populate_recordset(NULL::%1$I, $1) '
                'WHERE seq > $3 AND seq <= $4', name, list) USING projected -> name, of_journal, low, high;
        END IF;
    END LOOP;
    PERFORM change_decisions(of_journal, low, high, projected -> 'changes');
END $$;

-- The groups of columns that a later event changes, the newest event of each group last.
CREATE FUNCTION change_decisions(of_journal integer, low bigint, high bigint, changes jsonb) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = thorpolicy, pg_temp AS $$
    UPDATE decisions d SET classification = c.classification, clauses = c.clauses, reasoning = c.reasoning,
        full_response = c.full_response, explain_ms = c.explain_ms, explained_seq = c.explained_seq
    FROM (SELECT DISTINCT ON (decision_id) * FROM jsonb_populate_recordset(NULL::decisions, changes)
          WHERE explained_seq > low AND explained_seq <= high ORDER BY decision_id, explained_seq DESC) c
    WHERE d.journal = of_journal AND d.decision_id = c.decision_id;
    UPDATE decisions d SET reviewed = c.reviewed, review_decision = c.review_decision,
        review_reasoning = c.review_reasoning, review_timestamp = c.review_timestamp,
        decision_correct = c.decision_correct, reviewed_seq = c.reviewed_seq
    FROM (SELECT DISTINCT ON (decision_id) * FROM jsonb_populate_recordset(NULL::decisions, changes)
          WHERE reviewed_seq > low AND reviewed_seq <= high ORDER BY decision_id, reviewed_seq DESC) c
    WHERE d.journal = of_journal AND d.decision_id = c.decision_id;
    UPDATE decisions d SET outcome_status = c.outcome_status, outcome_value = c.outcome_value,
        outcome_seq = c.outcome_seq
    FROM (SELECT DISTINCT ON (decision_id) * FROM jsonb_populate_recordset(NULL::decisions, changes)
          WHERE outcome_seq > low AND outcome_seq <= high ORDER BY decision_id, outcome_seq DESC) c
    WHERE d.journal = of_journal AND d.decision_id = c.decision_id;
    UPDATE decisions d SET trace_status = c.trace_status, status_seq = c.status_seq
    FROM (SELECT DISTINCT ON (decision_id) * FROM jsonb_populate_recordset(NULL::decisions, changes)
          WHERE status_seq > low AND status_seq <= high ORDER BY decision_id, status_seq DESC) c
    WHERE d.journal = of_journal AND d.decision_id = c.decision_id;
$$;

-- What the `erased` events after `low` up to `high` say: the private parts that they name are deleted, with every
-- column that came from one. What is left of a part is stored if it has the digest that the event states.
CREATE FUNCTION apply_erasures(of_journal integer, low bigint, high bigint, projected jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = thorpolicy, pg_temp AS $$
DECLARE
    erased bigint[];
BEGIN
    IF NOT EXISTS (SELECT 1 FROM events e WHERE e.journal = of_journal AND e.seq > low AND e.seq <= high
                   AND e.kind = 'erased') THEN
        RETURN;
    END IF;
    INSERT INTO erasures
    SELECT of_journal, p.key::bigint, e.seq, decode(p.value, 'hex')
    FROM events e, jsonb_each_text(convert_from(e.body, 'UTF8')::jsonb -> 'parts') p
    WHERE e.journal = of_journal AND e.seq > low AND e.seq <= high AND e.kind = 'erased'
        AND p.key::bigint < e.seq;
    SELECT array_agg(DISTINCT x.seq) INTO erased FROM erasures x
    WHERE x.journal = of_journal AND x.by_seq > low AND x.by_seq <= high;
    DELETE FROM private p WHERE p.journal = of_journal AND p.seq = ANY (erased);
    DELETE FROM summaries s WHERE s.journal = of_journal AND s.seq = ANY (erased);
    DELETE FROM summaries s USING decisions d WHERE s.journal = of_journal AND d.journal = of_journal
        AND d.seq = s.seq AND (d.explained_seq = ANY (erased) OR d.reviewed_seq = ANY (erased));
    UPDATE decisions d SET situation = NULL, team_context = NULL, actor = NULL, entity = NULL
    WHERE d.journal = of_journal AND d.seq = ANY (erased);
    UPDATE decisions d SET reasoning = NULL, full_response = NULL WHERE d.journal = of_journal
        AND (d.explained_seq = ANY (erased) OR (d.seq = ANY (erased) AND d.explained_seq IS NULL));
    UPDATE decisions d SET review_reasoning = NULL WHERE d.journal = of_journal AND d.reviewed_seq = ANY (erased);
    UPDATE reviews r SET reviewer = NULL, reasoning = NULL WHERE r.journal = of_journal AND r.seq = ANY (erased);
    UPDATE outcomes o SET note = NULL WHERE o.journal = of_journal AND o.seq = ANY (erased);
    UPDATE approvals a SET approver = NULL, evidence = NULL, comment = NULL, recorded_by = NULL, roles = NULL,
        groups = NULL, parties = NULL WHERE a.journal = of_journal AND a.seq = ANY (erased);
    UPDATE trace_states t SET because = NULL WHERE t.journal = of_journal AND t.seq = ANY (erased);
    UPDATE edges e SET rationale = NULL WHERE e.journal = of_journal AND e.seq = ANY (erased);

    -- what is left, as the newest erasure of each part states it
    WITH left_of AS (
        SELECT (r ->> 'seq')::bigint AS seq, decode(r ->> 'salt', 'hex') AS salt,
            convert_to(r ->> 'value', 'UTF8') AS value, r -> 'row' AS new
        FROM jsonb_array_elements(projected -> 'left') r
    ), valid AS (
        SELECT l.* FROM left_of l JOIN LATERAL (
            SELECT x.digest FROM erasures x WHERE x.journal = of_journal AND x.seq = l.seq
            ORDER BY x.by_seq DESC LIMIT 1) x ON x.digest = sha256(l.salt || l.value)
        WHERE l.seq = ANY (erased)
    ), stored AS (
        INSERT INTO private SELECT of_journal, v.seq, v.salt, v.value FROM valid v
    )
    UPDATE decisions d SET situation = v.new -> 'situation', team_context = v.new ->> 'team_context',
        actor = v.new ->> 'actor', entity = v.new ->> 'entity',
        reasoning = CASE WHEN d.explained_seq IS NULL THEN v.new ->> 'reasoning' ELSE d.reasoning END,
        full_response = CASE WHEN d.explained_seq IS NULL THEN v.new ->> 'full_response' ELSE d.full_response END
    FROM valid v WHERE d.journal = of_journal AND d.seq = v.seq;
END $$;

-- A signed checkpoint, kept beside the chain. The signature is checked by `thorpolicy fleet verify`.
CREATE FUNCTION keep_checkpoint(
    of_device text, of_chain bytea, at_seq bigint, of_head bytea, signed_at text, of_key text, of_signature text,
    OUT status text
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = thorpolicy, pg_temp AS $$
DECLARE
    j journals%ROWTYPE;
    had bytea;
BEGIN
    PERFORM own_device(of_device);
    SELECT * INTO j FROM journals WHERE device = of_device AND chain = of_chain;
    SELECT e.hash INTO had FROM events e WHERE e.journal = j.journal AND e.seq = at_seq;
    IF had IS NULL THEN
        status := 'gap';
    ELSIF had <> of_head THEN
        PERFORM raise_alarm(of_device, of_chain, 'checkpoint', at_seq, had, of_head);
        status := 'fork';
    ELSE
        INSERT INTO checkpoints VALUES (j.journal, at_seq, of_head, signed_at, of_key, of_signature)
        ON CONFLICT DO NOTHING;
        status := 'ok';
    END IF;
END $$;
