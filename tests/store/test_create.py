from reliable_mq.store import Store


def test_create_twice_leaves_nothing_to_find(store_url):
    store = Store(database_url=store_url)
    store.create()
    store.create()
    assert store.check() == []
    with store.transaction() as connection:
        store.verify(connection)
    store.dispose()
