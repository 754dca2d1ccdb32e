-- Similar decisions: vectors in lists (IVFFlat), in place of a graph (HNSW). Where hundreds of vectors are nearly equal,
-- as a fleet's are, all links of a graph stay inside such a group, and a search that enters another one finds nothing.
-- Lists are made from the vectors that are there: `thorpolicy fleet index` makes the index, once they are many, and
-- makes it again when they have doubled. Until then every vector is compared.
DO $$
DECLARE
    version text := (SELECT extversion FROM pg_extension WHERE extname = 'vector');
BEGIN
    IF string_to_array(version, '.')::integer[] < ARRAY[0, 8] THEN
        RAISE 'pgvector is %, and thor-policy needs 0.8 or newer: install it, and run ALTER EXTENSION vector UPDATE',
            version;
    END IF;
END $$;
DROP INDEX summaries_embedding;
