-- What a trace lacks now, as the device says it of each decision that an event may have completed. Before, a decision
-- with requirements stayed in quarantine here, and counted in no figure and no report.

-- The rows of the tables that people query, of the events after `low` up to `high`, and what these events change in
-- earlier decisions. Anything else in `projected` is ignored: a device can state rows of its own new events only.
CREATE OR REPLACE FUNCTION store_rows(of_journal integer, low bigint, high bigint, projected jsonb) RETURNS void
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
    UPDATE decisions d SET lacks = c.lacks
    FROM jsonb_to_recordset(coalesce(projected -> 'lacks', '[]')) AS c(decision_id text, lacks jsonb)
    WHERE d.journal = of_journal AND d.decision_id = c.decision_id AND d.required IS NOT NULL
        AND d.lacks IS DISTINCT FROM c.lacks;
END $$;
