-- `receive` compares a batch with stored events only where it overlaps them. Before, the plan of that comparison read
-- every stored event of the journal, so the time of a batch grew with it. A NULL in a batch is now a wrong hash.
-- Where a row does not fit, the tables lack that row, not those of the whole batch.

-- The rows of `store_rows` one by one, without those that do not fit, which are noted in `without_rows`.
CREATE FUNCTION store_fitting_rows(of_journal integer, low bigint, high bigint, projected jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = thorpolicy, pg_temp AS $$
DECLARE
    name text;
    item jsonb;
    number bigint;
BEGIN
    FOR name, item IN
        SELECT n, r FROM unnest(ARRAY['decisions', 'reviews', 'outcomes', 'approvals', 'trace_states', 'edges',
                                      'changes', 'lacks']) AS n, jsonb_array_elements(projected -> n) AS r
    LOOP
        BEGIN
            number := NULL;
            number := coalesce(item ->> 'seq', item ->> 'explained_seq', item ->> 'reviewed_seq',
                               item ->> 'outcome_seq', item ->> 'status_seq');
            PERFORM store_rows(of_journal, low, high, jsonb_build_object(name, jsonb_build_array(item)));
        EXCEPTION WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded THEN
            INSERT INTO without_rows SELECT of_journal, number, number, left(SQLERRM, 500)
            WHERE number > low AND number <= high ON CONFLICT DO NOTHING;
        END;
    END LOOP;
END $$;
REVOKE ALL ON FUNCTION store_fitting_rows FROM PUBLIC;

-- Hand over events in order. `status` is `ok`, or why nothing was taken: `gap` (send the events after `seq`), `fork`
-- or `broken` (an alarm was stored). `seq` and `head` are how far the store is. Events that the store has are compared,
-- not stored again.
CREATE OR REPLACE FUNCTION receive(
    of_device text, of_chain bytea,
    seqs bigint[], ats bytea[], boots bytea[], monos bigint[], kinds bytea[], subjects bytea[], bodies bytea[],
    digests bytea[], prevs bytea[], hashes bytea[], salts bytea[], parts bytea[],
    projected jsonb,
    OUT status text, OUT seq bigint, OUT head bytea
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = thorpolicy, pg_temp AS $$
DECLARE
    j journals%ROWTYPE;
    n integer := coalesce(cardinality(seqs), 0);
    bad record;
    skip integer;
    received timestamptz := clock_timestamp();
BEGIN
    PERFORM own_device(of_device);
    SELECT * INTO j FROM journals WHERE device = of_device AND chain = of_chain FOR UPDATE;
    IF NOT FOUND THEN
        seq := 0; head := decode(repeat('00', 32), 'hex');
        IF n = 0 OR seqs[1] IS DISTINCT FROM 1 THEN
            status := 'gap';
            RETURN;
        END IF;
        IF hashes[1] IS DISTINCT FROM of_chain THEN
            PERFORM raise_alarm(of_device, of_chain, 'broken', 1, of_chain, hashes[1]);
            status := 'broken';
            RETURN;
        END IF;
        IF kinds[1] IS DISTINCT FROM 'gap' AND EXISTS (SELECT 1 FROM journals WHERE device = of_device) THEN
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
    skip := greatest(0, j.seq - seqs[1] + 1);
    IF skip > 0 THEN
        SELECT u.seq, e.hash AS had, u.hash AS got INTO bad
        FROM unnest(seqs, hashes) AS u(seq, hash)
        JOIN events e ON e.journal = j.journal AND e.seq = u.seq AND e.seq BETWEEN seqs[1] AND j.seq
        WHERE e.hash IS DISTINCT FROM u.hash ORDER BY u.seq LIMIT 1;
        IF FOUND THEN
            PERFORM raise_alarm(of_device, of_chain, 'fork', bad.seq, bad.had, bad.got);
            status := 'fork';
            RETURN;
        END IF;
    END IF;
    IF skip >= n THEN
        status := 'ok';
        RETURN;
    END IF;
    IF seqs[skip + 1] IS DISTINCT FROM j.seq + 1 THEN
        status := 'gap';
        RETURN;
    END IF;
    IF prevs[skip + 1] IS DISTINCT FROM j.head THEN
        PERFORM raise_alarm(of_device, of_chain, 'fork', j.seq, j.head, prevs[skip + 1]);
        status := 'fork';
        RETURN;
    END IF;

    -- the chain, from the stored bytes, as `journal.chain.hash_of` computes it
    SELECT j.seq + u.ord - skip AS seq, u.computed AS had, u.hash AS got INTO bad FROM (
        SELECT v.*, sha256(
            v.prev || int8send(v.seq) || int8send(v.mono) || int4send(octet_length(v.at))
            || int4send(octet_length(v.boot)) || int4send(octet_length(v.kind)) || int4send(octet_length(v.subject))
            || int4send(octet_length(v.body)) || int4send(octet_length(v.digest))
            || v.at || v.boot || v.kind || v.subject || v.body || v.digest) AS computed,
            lag(v.hash, 1, j.head) OVER (ORDER BY v.ord) AS before
        FROM unnest(seqs, ats, boots, monos, kinds, subjects, bodies, digests, prevs, hashes, salts, parts)
            WITH ORDINALITY AS v(seq, at, boot, mono, kind, subject, body, digest, prev, hash, salt, part, ord)
        WHERE v.ord > skip
    ) u WHERE u.seq IS DISTINCT FROM j.seq + u.ord - skip OR u.prev IS DISTINCT FROM u.before
        OR u.hash IS DISTINCT FROM u.computed
        OR (u.part IS NOT NULL AND sha256(u.salt || u.part) IS DISTINCT FROM u.digest)
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
    EXCEPTION WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded THEN
        PERFORM store_fitting_rows(j.journal, j.seq, seqs[n], projected);
    END;
    PERFORM apply_erasures(j.journal, j.seq, seqs[n], projected);
    UPDATE journals SET seq = seqs[n], head = hashes[n], newest_at = convert_from(ats[n], 'UTF8'),
        last_seen = received WHERE journal = j.journal;
    status := 'ok'; seq := seqs[n]; head := hashes[n];
END $$;
