-- What the database of an exchange is made with, once, as a superuser:
--     psql --file k8s/exchange/database.sql
-- Give each role a password of its own then (\password holdfast_owner, …), and put the addresses
-- into the Secrets. The tables are made by the services themselves. The names of the services' roles
-- are fixed: migrations grant them what they may, which is to read and to add, never to change what
-- was posted or decided. Neither service may enter the other's database.
CREATE ROLE holdfast_owner LOGIN;
CREATE ROLE holdfast_service LOGIN;
CREATE ROLE holdfast_risk_owner LOGIN;
CREATE ROLE holdfast_risk LOGIN;
CREATE DATABASE holdfast OWNER holdfast_owner TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C';
CREATE DATABASE risk OWNER holdfast_risk_owner TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C';
REVOKE ALL ON DATABASE holdfast FROM PUBLIC;
GRANT CONNECT, TEMPORARY ON DATABASE holdfast TO holdfast_service;
REVOKE ALL ON DATABASE risk FROM PUBLIC;
GRANT CONNECT, TEMPORARY ON DATABASE risk TO holdfast_risk;
